"""Pilot attempts of `art forecast`: made on a backend or a prompted model, and compared."""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from art_core.base.errors import ArtError, ConfigError
from art_core.cli.evaluation import import_target, imported, scenarios_in
from art_core.cli.project import Project
from art_core.cli.retrain import option_values
from art_core.data.dataset import scenario_id
from art_core.data.gather import AfterEach, gather_trajectory_groups
from art_core.data.trajectory import Trajectory, TrajectoryGroup, is_choice, message_of
from art_core.evaluation.attempts import Rollout
from art_core.forecast.pilot import (
    OTHER_MODELS,
    DeviceTime,
    Offer,
    PilotAttempt,
    Pilots,
    PlannedRun,
    cheapest,
    hosted_usd,
    others_usd,
)
from art_core.hooks.host import Plugins
from art_core.log.reader import LoggedRun, receipts_of
from art_core.metrics.receipt import Receipt, TokenRates
from art_core.model.backend import backend as make_backend
from art_core.model.model import Model
from art_core.model.trainable import TrainableModel
from art_core.prices.tables import listed_models, training_rates
from art_core.rl.sequences import merge_turns, turns_of

PROMPTED = "openai/"


@attrs.frozen(kw_only=True)
class PilotTask:
    """What the pilots attempt, and with which model: `backend` is None for a prompted one."""

    rollout: Rollout
    scenarios: Sequence[Any]
    judge: AfterEach | None
    model: str
    backend: str | None
    options: Mapping[str, Any]
    timeout: float | None

    @property
    def base_model(self) -> str:
        """The name of the model in price lists."""
        return self.model.removeprefix(PROMPTED)


def task_of(arguments: argparse.Namespace, rollout: Rollout, scenarios: Sequence[Any]) -> PilotTask:
    """Return the task that a command line names; ConfigError without a model or a backend."""
    if not scenarios:
        raise ConfigError(f"{arguments.scenarios} has no scenarios", "Write one JSON value a line.")
    if not arguments.model:
        raise ConfigError("the pilots need --model", "A base model, or openai/NAME.")
    backend = arguments.backend or os.environ.get("ART_BACKEND")
    if arguments.model.startswith(PROMPTED):
        backend = None
    elif backend is None:
        raise ConfigError(
            f"no backend is named to run {arguments.model!r} on",
            "Give --backend NAME, set ART_BACKEND, or ask a prompted model: --model openai/NAME.",
        )
    return PilotTask(
        rollout=rollout,
        scenarios=scenarios,
        judge=None,
        model=arguments.model,
        backend=backend,
        options=option_values(arguments.backend_set),
        timeout=arguments.timeout,
    )


def changes(arguments: argparse.Namespace) -> list[str]:
    """Return the settings of a project that options of a command line change."""
    given = {
        "run.steps": arguments.steps,
        "run.attempts": arguments.group,
        "run.scenarios_per_step": arguments.scenarios_per_step,
        "run.timeout_s": arguments.timeout,
        "model.base": arguments.model and f'"{arguments.model}"',
        "backend.name": arguments.backend and f'"{arguments.backend}"',
    }
    if arguments.backend_set:
        raise ConfigError(
            "--backend-set is of a rollout", "A project has them in [backend.NAME] of its art.toml."
        )
    return [f"{key}={value}" for key, value in given.items() if value is not None]


def of_project(project: Project) -> tuple[PilotTask, PlannedRun]:
    """Return the task of a project's directory, and what `art train` would do with it."""
    folder, run, of_eval = project.directory, project["run"], project["eval"]
    path, held_out = project.file("run", "scenarios"), project.file("eval", "scenarios")
    assert path is not None
    scenarios = scenarios_in(path)
    judge = None if run["judge"] is None else import_target(run["judge"], folder)[0]
    task = PilotTask(
        rollout=imported(run["rollout"], folder),
        scenarios=scenarios,
        judge=judge,
        model=project["model"]["base"],
        backend=project["backend"]["name"],
        options=project.backend_options(),
        timeout=run["timeout_s"],
    )
    # before the first step, every few steps, and after the last one
    evaluations = 1 + math.ceil(run["steps"] / of_eval["every"])
    of_each = 0 if held_out is None else len(scenarios_in(held_out)) * of_eval["repeats"]
    plan = PlannedRun(
        steps=run["steps"],
        scenarios=run["scenarios_per_step"] or len(scenarios),
        group=run["attempts"],
        evaluations=evaluations if of_each else 0,
        attempts_per_evaluation=of_each,
    )
    return task, plan


@attrs.frozen
class PilotRun:
    """The pilots, their mean reward, and notes on how they were measured."""

    pilots: Pilots
    reward: float
    notes: tuple[str, ...]


async def run_pilots(task: PilotTask, count: int) -> PilotRun:
    """Make `count` attempts, each at its own scenario as far as there are so many, and train one
    step on them twice to measure it; the run is thrown away. Raises RolloutError if all fail.
    """
    with tempfile.TemporaryDirectory(prefix="art-pilot-") as directory:
        if task.backend is None:
            model: Model = _prompted(task, directory)
            return await _measured(task, model, count, 0.0)
        began = time.monotonic()
        backend = make_backend(task.backend, **task.options)
        try:
            trained = TrainableModel(
                name="pilot", project="forecast", base_model=task.base_model,
                base_path=Path(directory), sinks=[],
            )  # fmt: skip
            await trained.register(backend)
            return await _measured(task, trained, count, time.monotonic() - began)
        finally:
            await backend.close()


def _prompted(task: PilotTask, directory: str) -> Model:
    return Model(
        name="pilot",
        project="forecast",
        inference_model_name=task.base_model,
        inference_base_url=os.environ.get("OPENAI_BASE_URL", "https://api.openai.com/v1"),
        inference_api_key=os.environ.get("OPENAI_API_KEY"),
        base_path=Path(directory),
        sinks=[],
    )


async def _measured(task: PilotTask, model: Model, count: int, startup_s: float) -> PilotRun:
    async with model:
        began = time.monotonic()
        groups = await gather_trajectory_groups(
            (
                TrajectoryGroup(
                    [task.rollout(model, scenario)],
                    metadata={"scenario_id": scenario_id(scenario)},
                )
                for scenario in (task.scenarios[n % len(task.scenarios)] for n in range(count))
            ),
            pbar_desc="pilots",
            timeout=task.timeout,
            after_each=task.judge,
        )
        wall_s = time.monotonic() - began
        await model.log(groups, split="pilot")
        trajectories = [trajectory for group in groups for trajectory in group]
        training_s, notes = await _trained(model, trajectories)
    run = LoggedRun(model.run_dir)
    rewards = [trajectory.total_reward for trajectory in trajectories]
    failures = sum(len(group.failures) for group in groups)
    pilots = _pilots(task, run, trajectories, failures, (startup_s, wall_s, training_s))
    if not any(attempt.sampled for attempt in pilots.attempts):
        notes.append("no token was counted: prices by the token are not compared")
    return PilotRun(pilots, math.fsum(rewards) / len(rewards), tuple(notes))


async def _trained(model: Model, trajectories: Sequence[Trajectory]) -> tuple[float, list[str]]:
    """Train two steps on the pilots, with rewards that differ; return the seconds of the second,
    since the first one warms up, and notes. A model that can't be trained takes none.
    """
    if not isinstance(model, TrainableModel):
        return 0.0, []
    copies = [
        attrs.evolve(t, reward=float(n % 2), turn_rewards=[]) for n, t in enumerate(trajectories)
    ]
    if len(copies) == 1:
        copies.append(attrs.evolve(copies[0], reward=1.0))
    try:
        await model.train([TrajectoryGroup(copies)])
        began = time.monotonic()
        await model.train([TrajectoryGroup(copies)])
    except ArtError as error:
        return 0.0, [f"training was not measured, and is in no sum: {error}"]
    return time.monotonic() - began, []


def _pilots(
    task: PilotTask,
    run: LoggedRun,
    trajectories: Sequence[Trajectory],
    failures: int,
    seconds: tuple[float, float, float],
) -> Pilots:
    usd: dict[str, float] = {}
    bought: list[Receipt] = []
    devices: list[Receipt] = []
    for row in run.rows():
        found = list(receipts_of(row))
        devices += [receipt for receipt in found if receipt.device_seconds]
        if row.step > 1:
            continue  # the second step measures the time of training
        bought += found
        for key, value in row.metrics.items():
            if key.startswith("costs/") and "/cum/" not in key:
                usd[key.removeprefix("costs/")] = usd.get(key.removeprefix("costs/"), 0.0) + value
    own = [receipt for receipt in bought if receipt.item.lower() == task.base_model.lower()]
    left = {path.rpartition("/")[0] for path in usd} | {"all"} | {_leaf(r) for r in devices}
    stored = (run.path / "trajectories" / "pilot").rglob("*")
    startup_s, wall_s, training_s = seconds
    return Pilots(
        attempts=tuple(_attempts(trajectories, own)),
        failures=failures,
        usd={path: value for path, value in usd.items() if path not in left},
        own=frozenset(map(_leaf, own)),
        device=_device(devices, math.fsum(seconds)),
        startup_s=startup_s,
        wall_s=wall_s,
        training_s=training_s,
        stored=float(sum(file.stat().st_size for file in stored if file.is_file())),
    )


def _leaf(receipt: Receipt) -> str:
    return receipt.leaf.removeprefix("costs/")


def _device(receipts: Sequence[Receipt], seconds: float) -> DeviceTime | None:
    """Return the device of receipts; None without a price. `seconds` are about those of the pilots,
    by which the number of devices is known.
    """
    usd = math.fsum(receipt.usd or 0.0 for receipt in receipts)
    used = math.fsum(receipt.device_seconds for receipt in receipts)
    if not usd:
        return None
    return DeviceTime(_leaf(receipts[0]), usd, usd / used * max(1, round(used / seconds)))


def _attempts(
    trajectories: Sequence[Trajectory], bought: Sequence[Receipt]
) -> Iterator[PilotAttempt]:
    """Yield what each attempt used: by its token ids, else its share of the tokens in the receipts,
    by the length of its answers.
    """
    letters = [_letters(trajectory) for trajectory in trajectories]
    asked, answered = (
        math.fsum(getattr(receipt, name) for receipt in bought)
        for name in ("input_tokens", "output_tokens")
    )
    for trajectory, length in zip(trajectories, letters, strict=True):
        turns = [turns_of(history)[0] for history in trajectory.histories()]
        prompt = sum(len(turn.prompt_ids) for each in turns for turn in each)
        sampled = sum(len(turn.completion_ids) for each in turns for turn in each)
        rows = [sequence for each in turns for sequence in merge_turns(each).sequences]
        trained = sum(len(sequence.token_ids) for sequence in rows)
        if not sampled:
            share = length / sum(letters)
            prompt, sampled = round(asked * share), round(answered * share)
            trained = prompt + sampled
        assert trajectory.end_time is not None
        seconds = (trajectory.end_time - trajectory.start_time).total_seconds()
        yield PilotAttempt(
            prompt=prompt, sampled=sampled, trained=trained, seconds=max(0.0, seconds)
        )


def _letters(trajectory: Trajectory) -> int:
    choices = [item for item in trajectory.messages_and_choices if is_choice(item)]
    return 1 + sum(len(str(message_of(choice).get("content") or "")) for choice in choices)


def offers(
    task: PilotTask, pilots: Pilots, plan: PlannedRun, plugins: Plugins, usd: Any
) -> list[Offer]:
    """Return ways to run the plan: what the pilots used, installed backends, hosted prices.

    `usd` is the interval of the plan on the backend of the pilots, None where it has no price.
    """
    found = []
    if task.backend is not None:
        assumes = (
            "its device: low if attempts share it perfectly, high if each takes as a pilot did"
        )
        if pilots.device is None:
            assumes = "each attempt uses the tokens of a pilot"
        if pilots.device is None and not pilots.own:
            usd, assumes = None, "no price is known for its device: give it with --backend-set"
        found.append(Offer(where=task.backend, model=task.base_model, usd=usd, assumes=assumes))
    found += _hosted(task, pilots, plan)
    listed = {offer.where for offer in found}
    found += [
        Offer(
            where=name, model=task.base_model, usd=None, same=False,
            assumes=f"installed, not tried: --backend {name} makes the pilots there",
        )
        for name in plugins.backends()
        if name not in listed
    ]  # fmt: skip
    return found


def _hosted(task: PilotTask, pilots: Pilots, plan: PlannedRun) -> Iterator[Offer]:
    """Yield hosted training by the token: of the model, then of the cheapest others."""
    others = others_usd(pilots, plan)
    same: list[tuple[float, Offer]] = []
    foreign: list[tuple[float, Offer]] = []
    for (provider, _), model in listed_models().items():
        rates = training_rates(provider, model.model)
        usd = None if rates is None else hosted_usd(pilots, plan, rates, others)
        if rates is None or usd is None or provider == task.backend:
            continue
        is_same = model.model.lower() == task.base_model.lower()
        offer = Offer(
            where=model.provider, model=model.model, usd=usd, same=is_same,
            assumes=_assumed(rates, is_same=is_same),
        )  # fmt: skip
        (same if is_same else foreign).append((usd.median, offer))
    yield from (offer for _, offer in same)
    foreign.sort(key=lambda each: each[0])
    yield from (offer for _, offer in foreign[:OTHER_MODELS])


def _assumed(rates: TokenRates, *, is_same: bool) -> str:
    text = f"{rates.source}; no cached prompts; each attempt is trained"
    return text if is_same else f"another model, with as many tokens; {text}"


def verdict(found: Sequence[Offer]) -> str:
    """Return in one line what is cheapest for the task."""
    best = cheapest(found)
    if best is None or best.usd is None:
        return "no way to run this model has a known price"
    usd = best.usd
    text = f"${usd.median:.4g} (90 %: ${usd.low90:.4g} to ${usd.high90:.4g})"
    return f"cheapest for this model: {best.where}, {text}"
