"""Rules about changes: a metric moves within `APART` steps while the reward gains nothing.

Two windows of `WIDTH` values are compared. The reward gains nothing if its mean rose by less than
two standard errors; a run whose mean reward is above `SOLVED` of its highest has no more to gain.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from statistics import fmean, median

import attrs

from art_core.checks.curves import (
    EvaluatedStep,
    MeanChange,
    RunCurves,
    change_of,
    finite,
    last_stretch,
    windows,
)
from art_core.checks.finding import CheckSpec, Finding
from art_core.checks.levels import found, values_of

WIDTH, APART, HELD = 8, 15, 2
SOLVED = 0.9
MIN_ENTROPY = 0.05
MIN_EVALUATIONS, MAX_EVALUATIONS, MIN_STEPS, CERTAIN = 4, 8, 15, 3.5


@attrs.frozen(kw_only=True)
class Growth:
    """A metric that grows by a factor, or falls to a part, while the reward does not rise."""

    rule: str
    summary: str
    metric: str
    factor: float
    problem: str
    change: str
    of: str = ""
    least: float = 0.0

    def check(self, curves: RunCurves) -> Iterator[Finding]:
        """Yield a finding if the metric moved by the factor while the reward gained nothing."""
        values = values_of(curves, self.metric, self.of)
        reward = curves.column("reward/mean")
        top = max([1.0, *finite(reward)])
        moved: dict[int, tuple[float, float]] = {}
        for place, before, after in windows(len(values), WIDTH, APART):
            old, new = _median(values[before]), _median(values[after])
            if self._is_far(old, new) and _gains_nothing(reward[before], reward[after], top):
                moved[place] = old, new
        stretch = last_stretch([place in moved for place in range(len(values))], HELD)
        if stretch is not None:
            places = range(stretch[0], stretch[1] + 1)
            old, new = max((moved[place] for place in places), key=_distance)
            yield found(
                curves,
                (max(0, stretch[0] - WIDTH), len(values) - 1),
                rule=self.rule,
                problem=self.problem.format(old=f"{old:.3g}", new=f"{new:.3g}", steps=APART),
                numbers={"before": old, "after": new, "factor": self.factor},
                metric=self.metric,
                change=self.change,
            )

    def _is_far(self, old: float, new: float) -> bool:
        if not old > self.least:
            return False
        return new / old >= self.factor if self.factor > 1 else new / old <= self.factor

    def spec(self) -> CheckSpec:
        """Return the rule as plugins offer theirs."""
        return CheckSpec(name=self.rule, check=self.check, summary=self.summary)


def _distance(moved: tuple[float, float]) -> float:
    old, new = moved
    return max(new / old, old / new) if new > 0 else math.inf


def _median(values: Sequence[float]) -> float:
    known = finite(values)
    return median(known) if 2 * len(known) >= WIDTH else math.nan


def _gains_nothing(before: Sequence[float], after: Sequence[float], top: float) -> bool:
    change = change_of(before, after)
    if change is None:
        return False
    return change.gain <= 2 * change.error and fmean(finite(after)) < SOLVED * top


GROWTHS = (
    Growth(
        rule="entropy-collapse",
        summary="entropy falls to a quarter in 15 steps, and the reward does not rise",
        metric="loss/entropy",
        factor=0.25,
        least=MIN_ENTROPY,
        problem="entropy fell from {old} to {new} nats in {steps} steps; reward did not rise",
        change="Lower learning_rate, or give entropy_coef.",
    ),
    Growth(
        rule="length-growth",
        summary="attempts grow 1.6 times longer in 15 steps, and the reward does not rise",
        metric="data/step_actor_tokens",
        of="data/step_num_trajectories",
        factor=1.6,
        problem="attempts grew from {old} to {new} tokens in {steps} steps; reward did not rise",
        change="Let the reward count length, or lower max_tokens.",
    ),
    Growth(
        rule="costs-without-gain",
        summary="a step costs 1.8 times as much as 15 steps before; the reward does not rise",
        metric="costs/all",
        factor=1.8,
        problem="a step costs ${new}, {steps} steps before it was ${old}; reward did not rise",
        change="See what is bought with `art costs RUN --per-step`.",
    ),
)


def val_apart(curves: RunCurves) -> Iterator[Finding]:
    """Find evaluations that are flat or fall while the reward of training rises.

    The first half of 4 to 8 evaluations is compared with the second half. The reward must rise,
    and differ from val's gain, by 3.5 standard errors, and val gain less than a tenth of it.
    """
    newest: Finding | None = None
    for end in range(MIN_EVALUATIONS, len(curves.evaluations) + 1):
        for count in range(MIN_EVALUATIONS, min(MAX_EVALUATIONS, end) + 1):
            finding = _apart(curves, curves.evaluations[end - count : end])
            if finding is not None and newest is None:
                newest = finding
    if newest is not None:
        yield newest


def _apart(curves: RunCurves, evaluations: Sequence[EvaluatedStep]) -> Finding | None:
    half = len(evaluations) // 2
    first, middle, last = evaluations[0].step, evaluations[half].step, evaluations[-1].step
    if last - first < MIN_STEPS:
        return None
    reward = curves.column("reward/mean")
    begin, turn = (bisect_left(curves.steps, step) for step in (first, middle))
    train = change_of(reward[begin:turn], reward[turn : bisect_right(curves.steps, last)])
    if train is None:
        return None
    val = _val_change(evaluations[:half], evaluations[half:])
    error = math.hypot(train.error, val.error)
    sure = train.gain > CERTAIN * train.error and train.gain - val.gain > CERTAIN * error
    if not sure or val.gain > 0.1 * train.gain:
        return None
    return Finding(
        rule="val-apart",
        onset=first,
        problem=f"from step {first} to {last} the reward rose by {train.gain:.3g}, "
        f"and val/reward changed by {val.gain:+.3g}",
        numbers={"reward_gain": train.gain, "val_gain": val.gain},
        metric="val/reward",
        change="Read the best attempts for a fault of the reward (`art check`), or give more "
        "scenarios.",
    )


def _val_change(before: Sequence[EvaluatedStep], after: Sequence[EvaluatedStep]) -> MeanChange:
    means = [fmean(e.reward for e in side) for side in (before, after)]
    spread = [
        abs(e.reward - mean)
        for side, mean in zip((before, after), means, strict=True)
        for e in side
    ]
    own = max(spread) / math.sqrt(len(before))
    errors = [math.fsum(e.std_err**2 for e in side) / len(side) ** 2 for side in (before, after)]
    error = math.sqrt(math.fsum(errors))
    return MeanChange(means[1] - means[0], own if math.isnan(error) else error)
