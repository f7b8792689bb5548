"""Evaluate models on fixed scenarios: each attempt durable, one row per model and step."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import attrs

from art_core.backends import Endpoint
from art_core.base.errors import ConfigError, RolloutError, RolloutFailure
from art_core.base.files import checked_name
from art_core.base.numbers import checked_step
from art_core.base.progress import progress_bar
from art_core.budgets.hold import drawing_from
from art_core.budgets.run_budget import RunBudget
from art_core.data.account import charging, open_account
from art_core.data.outcome import Outcome, outcome
from art_core.data.trajectory import Trajectory, TrajectoryGroup
from art_core.evaluation.attempts import Attempt, AttemptFile, Rollout, by_id
from art_core.evaluation.statistics import LEVEL, Estimate, clustered, pass_at_k
from art_core.log.history import MetricsRow
from art_core.log.rows import read_rows
from art_core.model.model import Model

log = logging.getLogger("art_core")


@attrs.frozen(eq=False)
class ModelAt:
    """A model whose requests ask for the weights of one step; all else is the model's."""

    model: Any
    step: int

    def get_inference_name(self, step: int | None = None) -> str:
        """Return the name of the step's weights, or of another step."""
        return str(self.model.get_inference_name(self.step if step is None else step))

    @contextmanager
    def recording(self, trajectory: Trajectory, **options: Any) -> Iterator[Endpoint]:
        """Give the endpoint of `Model.recording`, with the model name of the step's weights."""
        with self.model.recording(trajectory, **options) as endpoint:
            yield attrs.evolve(endpoint, model_name=self.get_inference_name())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


@attrs.frozen(kw_only=True, eq=False)
class Evaluation:
    """What a model's weights of one step are worth on scenarios.

    `reward` is the mean with its interval, clustered by scenario; `pass_at` the chance that one of
    k attempts is worth at least `success`, for k of 1 and the number of repeats; `usd` and
    `seconds` are per attempt; `row` is what was logged.
    """

    model: str
    step: int
    groups: Sequence[TrajectoryGroup]
    reward: Estimate
    pass_at: Mapping[int, float]
    usd: float
    seconds: float
    unpriced: int
    row: MetricsRow

    @property
    def rewards(self) -> dict[str, list[float]]:
        """Rewards by scenario id."""
        return {g.metadata["scenario_id"]: g.rewards for g in self.groups}

    @property
    def failures(self) -> int:
        """Attempts that gave no trajectory."""
        return sum(len(group.failures) for group in self.groups)


async def evaluate(
    models: Model | Iterable[Model],
    scenarios: Iterable[Any],
    rollout: Rollout,
    *,
    step: int | None = None,
    split: str = "val",
    repeats: int = 1,
    max_concurrent: int = 32,
    timeout: float | None = None,
    success: float = 1.0,
    level: float = LEVEL,
    progress: str | None = "evaluate",
) -> list[Evaluation]:
    """Run `rollout(model, scenario)` `repeats` times per scenario for each model, and log a row of
    each: mean reward, its standard error, pass@k, US dollars and seconds per attempt.

    `step` asks for the weights of an older step, and is the row's; without it the newest ones are
    evaluated. A scenario's id is its `id`, or made of its content. Each attempt is kept on disk as
    it ends: an evaluation that was killed goes on when it is called again with the same scenarios,
    and pays for no finished attempt twice. Attempts that failed then run again.

    Raises ConfigError for no or doubled scenarios, BudgetError where a model's budget ends it (the
    attempts until then are kept), RolloutError when every attempt of a model fails, and then logs
    no row.
    """
    chosen = [models] if isinstance(models, Model) else list(models)
    asked = by_id(list(scenarios))
    checked_name("split", split)
    check_counts(repeats=repeats, max_concurrent=max_concurrent)
    step = None if step is None else checked_step(step)
    slots = asyncio.Semaphore(max_concurrent)
    total = len(chosen) * len(asked) * repeats
    bar = progress_bar(desc=progress, total=total, unit="attempt") if progress else None
    plan = _Plan(asked, rollout, split, repeats, timeout, success, level, slots, bar)
    try:
        return list(await asyncio.gather(*(plan.run(model, step) for model in chosen)))
    finally:
        if bar is not None:
            bar.close()


@attrs.frozen
class _Plan:
    scenarios: Mapping[str, Any]
    rollout: Rollout
    split: str
    repeats: int
    timeout: float | None
    success: float
    level: float
    slots: asyncio.Semaphore
    bar: Any

    async def run(self, model: Model, step: int | None) -> Evaluation:
        """Evaluate one model and log its row."""
        at = await model.get_step() if step is None else step
        if model.budget is not None:
            model.run  # noqa: B018 # an open run has joined its budget
        served = model if step is None else ModelAt(model, step)
        described = {"scenarios": sorted(self.scenarios), "repeats": self.repeats, "step": at}
        path = model.run_dir / "evaluations" / self.split / f"{at:04d}.jsonl"

        is_logged = functools.partial(_is_logged, model, self.split, at)
        file = await asyncio.to_thread(AttemptFile.open, path, described, is_logged)
        restored = list(file.attempts)
        kept = {(a.scenario, a.repeat) for a in restored if isinstance(a.result, Trajectory)}
        wanted = [(s, r) for s in self.scenarios for r in range(self.repeats)]
        missing = [key for key in wanted if key not in kept]
        if self.bar is not None:
            self.bar.update(len(wanted) - len(missing))
        calls: list[Any] = []
        budget = model.metrics_builder().budget
        if budget is not None and missing:
            budget.begin(self.split)
        with drawing_from(budget, self.split):
            tasks = [asyncio.ensure_future(self._one(served, file, key, calls)) for key in missing]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return await self._logged(model, at, file, restored, calls)

    async def _one(
        self, model: Any, file: AttemptFile, key: tuple[str, int], calls: list[Any]
    ) -> None:
        scenario, repeat = key
        account = open_account()
        with charging(account):
            result = await run_attempt(
                self.rollout, model, self.scenarios[scenario], self.timeout, self.slots
            )
        paid = account.take()
        calls += paid
        attempt = Attempt(
            scenario=scenario,
            repeat=repeat,
            result=result,
            **_costs_of(paid, model.metrics_builder().budget),
        )
        # Not in a thread: a cancellation can not come between the attempt and its line.
        file.add(attempt)
        if self.bar is not None:
            self.bar.update(1)

    async def _logged(
        self,
        model: Model,
        step: int,
        file: AttemptFile,
        restored: Sequence[Attempt],
        calls: Iterable[Any],
    ) -> Evaluation:
        newest = {(a.scenario, a.repeat): a for a in file.attempts}
        groups = [self._group(scenario, newest) for scenario in self.scenarios]
        trajectories = [t for group in groups for t in group]
        if not trajectories:
            first = next(f for group in groups for f in group.failures)
            raise RolloutError(
                f"all {len(newest)} attempts of {model.name} failed; the first: {first}",
                "Mend it and evaluate again; nothing was logged.",
            )
        attempts = file.attempts
        reward = clustered({g.metadata["scenario_id"]: g.rewards for g in groups}, self.level)
        passed = self._pass_at(groups)
        usd = math.fsum(sum(a.usd.values()) for a in attempts) / len(newest)
        seconds = math.fsum(map(_seconds, trajectories)) / len(trajectories)
        metrics = {f"pass_at_{k}": value for k, value in passed.items()}
        metrics |= {"usd_per_attempt": usd, "seconds_per_attempt": seconds}
        if math.isfinite(reward.std_err):
            metrics["reward_std_err"] = reward.std_err
        self._book(model, restored, calls)
        last = model.run.history.last
        file.finish(last.seq + 1 if last else 1)
        try:
            row = await model.log(groups, split=self.split, step=step, metrics=metrics)
        except BaseException:
            file.set_booked()
            raise
        return Evaluation(
            model=model.name,
            step=step,
            groups=groups,
            reward=reward,
            pass_at=passed,
            usd=usd,
            seconds=seconds,
            unpriced=sum(a.unpriced for a in attempts),
            row=row,
        )

    def _group(self, scenario: str, attempts: Mapping[tuple[str, int], Attempt]) -> TrajectoryGroup:
        results = [attempts[scenario, r].result for r in range(self.repeats)]
        return TrajectoryGroup(results, metadata={"scenario_id": scenario})

    def _pass_at(self, groups: Sequence[TrajectoryGroup]) -> dict[int, float]:
        """Return pass@k; a failure counts as an attempt that did not pass."""
        passed = [sum(reward >= self.success for reward in g.rewards) for g in groups]
        return {
            k: math.fsum(pass_at_k(self.repeats, c, k) for c in passed) / len(passed)
            for k in sorted({1, self.repeats})
        }

    def _book(self, model: Model, restored: Iterable[Attempt], calls: Iterable[Any]) -> None:
        """Book the costs: new calls with their receipts, those of an earlier process as sums."""
        builder = model.metrics_builder("eval" if self.split != "train" else "train")
        for call in calls:
            call.book(builder)
        for attempt in (a for a in restored if not a.booked):
            builder.ledger.covered += attempt.covered
            for source, usd in attempt.usd.items():
                builder.add_cost(f"{builder.context}/{source}", usd)
            for _ in range(attempt.unpriced):
                builder.add_unpriced()


def _is_logged(model: Model, split: str, step: int, seq: int) -> bool:
    """Return whether the log's row of a number is an evaluation of a split and step: a process that
    was killed may have noted the number and not written the row.
    """
    rows = (row for row, _ in read_rows(model.run.history.path))
    found = next((row for row in rows if row.seq == seq), None)
    return (
        found is not None
        and (found.split, found.step) == (split, step)
        and f"{split}/pass_at_1" in found.metrics
    )


def check_counts(**counts: Any) -> None:
    """Raise ConfigError for an option that is not a whole number of at least 1."""
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r:.80}")


async def run_attempt(
    rollout: Rollout, model: Any, scenario: Any, timeout: float | None, slots: asyncio.Semaphore
) -> Outcome:
    """Run one attempt when a slot is free; what fails is data. ConfigError for a rollout that is
    not async.
    """
    async with slots:
        return await _outcome(rollout, model, scenario, timeout)


async def _outcome(rollout: Rollout, model: Any, scenario: Any, timeout: float | None) -> Outcome:
    try:
        made = rollout(model, scenario)
    except Exception as error:
        return RolloutFailure.of(error)
    if not isinstance(made, Awaitable):
        raise ConfigError(
            f"the rollout returned {type(made).__name__}, not an awaitable",
            "Write `async def rollout(model, scenario)`.",
        )
    return await outcome(cast("Awaitable[Trajectory]", made), timeout)


def _seconds(trajectory: Trajectory) -> float:
    """Return the seconds between the start and the end of an attempt."""
    assert trajectory.end_time is not None
    return max(0.0, (trajectory.end_time - trajectory.start_time).total_seconds())


def _costs_of(calls: Iterable[Any], budget: RunBudget | None) -> dict[str, Any]:
    usd: Counter[str] = Counter()
    unpriced, covered = 0, 0.0
    for call in calls:
        dollars = call.quote()
        if call.hold is not None and dollars is not None:
            covered += call.hold.paid_from(budget)
        if dollars is None:
            unpriced += 1
        else:
            usd[call.source] += dollars
    return {"usd": dict(usd), "unpriced": unpriced, "covered": covered}
