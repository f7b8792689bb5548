"""`art train`: trains the agent of a project's directory."""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import shlex
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from art_core.base.errors import BudgetError, ConfigError, unknown
from art_core.cli.arguments import add_budget, add_directory, directory
from art_core.cli.completion import backend_names, completed
from art_core.cli.evaluation import import_target, imported, scenarios_in
from art_core.cli.page import page_beside
from art_core.cli.project import FILE, Project, read_project
from art_core.cli.sparkline import sparkline
from art_core.data.dataset import places, scenario_id
from art_core.data.gather import AfterEach, gather_trajectory_groups
from art_core.data.sampler import ScenarioSampler
from art_core.data.trajectory import TrajectoryGroup
from art_core.endpoint.listener import LOOPBACK
from art_core.evaluation.attempts import Rollout
from art_core.evaluation.evaluate import evaluate
from art_core.gateway.gateway import GatewayOptions
from art_core.hooks.commands import ExitStatus, Output, Record
from art_core.hooks.doctor import doctor_sink
from art_core.hooks.host import Plugins, installed_plugins
from art_core.log.reader import LoggedRun, find_run
from art_core.log.rundir import runs_path
from art_core.model.backend import Backend, option_names
from art_core.model.backend import backend as make_backend
from art_core.model.stopping import check_stop
from art_core.model.trainable import TrainableModel
from art_core.pipelines.pipeline import pipeline
from art_core.rl.config import TrainConfig
from art_core.sinks.protocol import SinkSpec

_HELP = """\
PROJECT is a directory with an art.toml, which `art init` writes: it names the rollout, the
scenarios, the base model, the backend and the options of training. The settings are stored with
the run. The same command continues a run after its last step; another run.name starts afresh.

examples:
  art train demo
  art train demo --steps 30
  art train demo --pipeline
  art train demo --pipeline --gateway 8400 --set run.max_concurrent=0
  art train demo --stop-on entropy-collapse --stop-on dead-groups-right
  art train demo --max-usd 5 --set budget.per_step=0.2
  art train demo --backend tinker --set model.base=Qwen/Qwen3-4B-Instruct-2507
  art train demo --set train.learning_rate=1e-4 --set run.name=demo-002
"""


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "train", help="train the agent of a project that `art init` wrote", epilog=_HELP
    )
    option = parser.add_argument
    option("project", metavar="PROJECT", type=directory, nargs="?", default=Path())
    completed(option("--backend", metavar="NAME", help="as `art backends` lists"), backend_names)
    option("--steps", type=int, metavar="N", help="the step to train up to")
    option("--pipeline", action="store_true", help="make the next attempts while a step is trained")
    option(
        "--gateway", metavar="[HOST:]PORT",
        help="with --pipeline: `art worker` makes attempts, too, over a server at this address",
    )  # fmt: skip
    option("--allow-remote", action="store_true", help="other machines may reach the gateway")
    option("--no-board", action="store_true", help="serve no page of the run beside the training")
    option("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="a setting")
    option("--stop-on", action="append", metavar="RULE", help="end when the doctor finds this")
    add_budget(parser)
    add_directory(parser)
    parser.set_defaults(run=run_train)


def run_train(arguments: argparse.Namespace, plugins: Plugins) -> Iterator[Output]:
    """Train; yield where the run is, and what came of it."""
    project = read_project(arguments.project, _changes(arguments))
    stop_on = [*project["run"]["stop_on"], *(arguments.stop_on or ())]
    work, gateway = _Work.of(project), _gateway_of(arguments)
    if gateway is None and not project["run"]["max_concurrent"]:
        raise ConfigError("run.max_concurrent is 0", "Give --pipeline --gateway PORT, too.")
    if arguments.pipeline and project["run"]["sampler"] != "epochs":
        raise ConfigError(
            f"{FILE}: run.sampler is {project['run']['sampler']!r}, and --pipeline takes scenarios "
            "in epochs, ahead of the steps",
            "Leave one of them out.",
        )
    backend = make_backend(project["backend"]["name"], **project.backend_options())
    _check_options(project["train"], backend)
    model = TrainableModel(
        name=project["run"]["name"],
        project=project["run"]["project"],
        base_model=project["model"]["base"],
        config={section: dict(values) for section, values in project.settings.items()},
        base_path=arguments.dir,
        sinks=_sinks(stop_on),
        budget=project.budget(),
    )
    spent: BudgetError | None = None
    with ExitStack() as beside:
        shown = "board" in plugins.commands() and not arguments.no_board
        if shown and (address := beside.enter_context(page_beside(arguments.dir))):
            place = f" {shlex.quote(str(arguments.dir))}" if arguments.dir else ""
            yield f"the run as a page: {address}, and afterwards: art board{place}"
        if gateway is not None:
            yield _for_workers(gateway, project)
        began = time.monotonic()
        way = partial(_piped, gateway=gateway) if arguments.pipeline else _steps
        try:
            asyncio.run(_trained(model, backend, project, work, way))
        except BudgetError as error:
            spent = error
        seconds = time.monotonic() - began
    yield _result(find_run(model.run_dir, runs_path(arguments.dir)), arguments.project, seconds)
    if spent is not None:
        yield Record({"out_of_budget": str(spent)}, [f"out of budget: {spent}"])
        yield ExitStatus(1)


def _changes(arguments: argparse.Namespace) -> list[str]:
    """Return the settings that options change."""
    changes = list(arguments.set)
    if arguments.steps is not None:
        changes.append(f"run.steps={arguments.steps}")
    if arguments.backend is not None:
        changes.append(f'backend.name="{arguments.backend}"')
    if arguments.max_usd is not None:
        changes.append(f"budget.usd={arguments.max_usd}")
    if arguments.budget_file is not None:
        changes.append(f"budget.file={str(arguments.budget_file.absolute())!r}")
    return changes


def _sinks(stop_on: Sequence[str]) -> list[str | SinkSpec] | None:
    """Return the default sinks and the doctor; with `ART_SINKS` it is added if it may stop."""
    named = os.environ.get("ART_SINKS")
    if named is None:
        others = [spec.name for spec in installed_plugins().sinks().values() if spec.default]
    elif stop_on:
        others = [name.strip() for name in named.split(",")]
    else:
        return None
    return [*(name for name in others if name not in ("", "doctor")), doctor_sink(stop_on=stop_on)]


@attrs.frozen(kw_only=True)
class _Work:
    """What a project's code and data give."""

    rollout: Rollout
    scenarios: Sequence[Any]
    judge: AfterEach | None
    held_out: Sequence[Any]

    @classmethod
    def of(cls, project: Project) -> _Work:
        """Import a project's code, and read its scenarios."""
        folder = project.directory
        judge, held_out = project["run"]["judge"], project.file("eval", "scenarios")
        path = project.file("run", "scenarios")
        assert path is not None
        scenarios = scenarios_in(path)
        if not scenarios:
            raise ConfigError(f"{path} has no scenarios", "Write one JSON value per line.")
        return cls(
            rollout=imported(project["run"]["rollout"], folder),
            scenarios=scenarios,
            judge=None if judge is None else import_target(judge, folder)[0],
            held_out=() if held_out is None else scenarios_in(held_out),
        )

    def of_step(self, step: int, count: int | None, seed: int) -> list[Any]:
        """Return the scenarios of a step, counted from 0: each once per epoch, in an order of its
        own.
        """
        size = len(self.scenarios)
        count = size if count is None else count
        taken = places(size, step * count, (step + 1) * count, seed)
        return [self.scenarios[index] for _, index in taken]


def _gateway_of(arguments: argparse.Namespace) -> GatewayOptions | None:
    """Return the options of the gateway that is asked for."""
    if arguments.gateway is None:
        if arguments.allow_remote:
            raise ConfigError("--allow-remote is of a gateway", "Give --pipeline --gateway PORT.")
        return None
    host, _, port = arguments.gateway.rpartition(":")
    if not arguments.pipeline or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise ConfigError(
            f"--gateway {arguments.gateway} needs --pipeline and a port",
            "Such as: art train demo --pipeline --gateway 8400",
        )
    return {
        "host": host or LOOPBACK[0],
        "port": int(port),
        "api_key": os.environ.get("ART_GATEWAY_KEY") or secrets.token_urlsafe(32),
        "allow_remote": arguments.allow_remote,
    }


def _for_workers(gateway: GatewayOptions, project: Project) -> Record:
    """Return how workers begin, in the project's directory; the key only if it is a random one."""
    url, rollout = f"http://{gateway['host']}:{gateway['port']}", project["run"]["rollout"]
    given = bool(os.environ.get("ART_GATEWAY_KEY"))
    facts = {"url": url, "key": None if given else gateway["api_key"]}
    lines = [] if given else [f"export ART_GATEWAY_KEY={gateway['api_key']}"]
    return Record(facts, [*lines, f"art worker {rollout} --server {url}"])


Way = Callable[[TrainableModel, Project, _Work], Awaitable[None]]


def _check_options(options: Mapping[str, Any], backend: Backend) -> None:
    own = attrs.fields_dict(TrainConfig).keys()
    known = own | (option_names(backend.train) - {"model", "groups"})
    for option in options:
        if option not in known:
            raise ConfigError(f"{FILE}: {unknown('key of [train]', option, known)}")
    TrainConfig(**{name: value for name, value in options.items() if name in own})


async def _trained(
    model: TrainableModel, backend: Backend, project: Project, work: _Work, way: Way
) -> None:
    async with model:
        try:
            await model.register(backend)
            await way(model, project, work)
        finally:
            await backend.close()


async def _steps(model: TrainableModel, project: Project, work: _Work) -> None:
    steps, every = project["run"]["steps"], project["eval"]["every"]
    gather = _sampled if project["run"]["sampler"] == "thompson" else _in_turn
    groups_of = gather(model, project["run"], work)
    model.check_scenarios(work.scenarios)
    begun = await model.get_step()
    if begun == 0:
        await _evaluated(model, project, work, 0)
    for step in range(begun, steps):
        await check_stop(model, model.run.info.stop)
        await model.train(await groups_of(step), **project["train"])
        if (step + 1) % every == 0 or step + 1 == steps:
            await _evaluated(model, project, work, step + 1)


async def _piped(
    model: TrainableModel, project: Project, work: _Work, gateway: GatewayOptions | None
) -> None:
    """Train with rollouts, training and evaluation at the same time."""
    run, of_eval = project["run"], project["eval"]
    size = run["scenarios_per_step"] or len(work.scenarios)
    await pipeline(
        model,
        work.scenarios,
        work.rollout,
        eval_scenarios=work.held_out,
        after_each=work.judge,
        gateway=gateway,
        steps=run["steps"],
        attempts=run["attempts"],
        min_batch_size=size,
        max_concurrent=run["max_concurrent"],
        timeout=run["timeout_s"],
        seed=run["seed"],
        eval_every=of_eval["every"],
        eval_repeats=of_eval["repeats"],
        **project["train"],
    )


Gather = Callable[[int], Awaitable[list[TrajectoryGroup]]]


def _limits(run: Mapping[str, Any], work: _Work) -> dict[str, Any]:
    return {
        "max_concurrent": run["max_concurrent"],
        "timeout": run["timeout_s"],
        "after_each": work.judge,
    }


def _in_turn(model: TrainableModel, run: Mapping[str, Any], work: _Work) -> Gather:
    """Return what gathers the groups of a step, each scenario once per epoch."""

    async def gather(step: int) -> list[TrajectoryGroup]:
        scenarios = work.of_step(step, run["scenarios_per_step"], run["seed"])
        return await gather_trajectory_groups(
            (
                TrajectoryGroup(
                    (work.rollout(model, scenario) for _ in range(run["attempts"])),
                    metadata={"scenario_id": scenario_id(scenario)},
                )
                for scenario in scenarios
            ),
            **_limits(run, work),
        )

    return gather


def _sampled(model: TrainableModel, run: Mapping[str, Any], work: _Work) -> Gather:
    """Return what gathers the groups that are expected to teach the most for their cost."""
    sampler = ScenarioSampler(
        scenarios=work.scenarios,
        run_dir=model.run_dir,
        groups=run["scenarios_per_step"] or len(work.scenarios),
        attempts=run["attempts"],
        seed=run["seed"],
    )
    return lambda step: sampler.gather(
        step, lambda scenario: work.rollout(model, scenario), **_limits(run, work)
    )


async def _evaluated(model: TrainableModel, project: Project, work: _Work, step: int) -> None:
    if work.held_out:
        await evaluate(
            model,
            work.held_out,
            work.rollout,
            step=step,
            repeats=project["eval"]["repeats"],
            max_concurrent=project["run"]["max_concurrent"],
            timeout=project["run"]["timeout_s"],
        )


def _result(run: LoggedRun, project: Path, seconds: float) -> Record:
    key, name = "reward/mean", run.path.name
    rows = run.rows(split="train", current=True)
    curve = {row.step: row.metrics[key] for row in rows if key in row.metrics}
    usd = run.costs().total.get("all", 0.0)
    values = {
        "run": name,
        "directory": run.path,
        "step": max(curve, default=0),
        "first_reward": curve[min(curve)] if curve else None,
        "last_reward": curve[max(curve)] if curve else None,
        "usd": usd,
        "seconds": seconds,
    }
    lines = ["no step has a reward"]
    if curve:
        rewards = list(curve.values())
        lines = [
            f"{key}  {sparkline(rewards)}  {rewards[0]:.3f} to {rewards[-1]:.3f}",
            f"step {max(curve)}, ${usd:.4f} in all, {seconds:.0f} s now, in {_short(run.path)}",
        ]
    onward = f"art train {shlex.quote(str(project))} --steps N"
    return Record(values, [*lines, f"next: art show {name}, or {onward} to go on"])


def _short(path: Path) -> str:
    return os.path.relpath(path)
