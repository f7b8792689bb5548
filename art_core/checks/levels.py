"""Rules about levels: a metric stays beyond a limit for `STEPS` steps.

The limit is compared with the median of the last `WIDTH` values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import attrs

from art_core.checks.curves import RunCurves, finite, last_stretch, smoothed
from art_core.checks.finding import CheckSpec, Finding

WIDTH, STEPS = 5, 10
DEAD_SHARE, SOLVED_STEPS = 0.9, 15
LEARNS_NOTHING, SMALL_PART = 1e-8, 1e-3
MEANT_TOKENS = 16


def values_of(curves: RunCurves, metric: str, of: str = "") -> Sequence[float]:
    """Return the values of a metric, or of one divided by another."""
    return curves.ratio(metric, of) if of else curves.column(metric)


def truncated_share(curves: RunCurves, metric: str, of: str) -> list[float]:
    """Return the share of attempts that were cut off; NaN where attempts have 16 tokens or fewer.

    A limit of a few tokens is meant to cut: an answer of one token is a choice.
    """
    tokens = curves.ratio("data/step_actor_tokens", of)
    return [
        math.nan if count <= MEANT_TOKENS else share
        for share, count in zip(curves.ratio(metric, of), tokens, strict=True)
    ]


@attrs.frozen(kw_only=True)
class Level:
    """A limit of a metric, or of one metric divided by another, and what to write beyond it.

    `problem` is a text with the places `{value}` and `{limit}`.
    """

    rule: str
    summary: str
    metric: str
    limit: float
    problem: str
    change: str
    of: str = ""
    shown: str = ".0%"
    values: Callable[[RunCurves, str, str], Sequence[float]] = values_of

    def check(self, curves: RunCurves) -> Iterator[Finding]:
        """Yield a finding if the metric was at the limit or above it for `STEPS` steps."""
        values = self.values(curves, self.metric, self.of)
        flags = [value >= self.limit for value in smoothed(values, WIDTH)]
        stretch = last_stretch(flags, STEPS)
        if stretch is not None:
            first, last = trimmed(stretch, [value >= self.limit for value in values])
            value = _mean(values[first : last + 1])
            yield found(
                curves,
                (first, last),
                rule=self.rule,
                problem=self.problem.format(
                    value=format(value, self.shown), limit=format(self.limit, self.shown)
                ),
                numbers={"value": value, "limit": self.limit},
                metric=self.metric,
                change=self.change,
            )

    def spec(self) -> CheckSpec:
        """Return the rule as plugins offer theirs."""
        return CheckSpec(name=self.rule, check=self.check, summary=self.summary)


def _mean(values: Sequence[float]) -> float:
    known = finite(values)
    return math.fsum(known) / len(known)


def trimmed(stretch: tuple[int, int], flags: Sequence[bool]) -> tuple[int, int]:
    """Return a stretch of medians as one of values: a median begins late, and ends late.

    One that goes on at the newest step does not end.
    """
    first, last = stretch
    while first > 0 and flags[first - 1]:
        first -= 1
    while first < last < len(flags) - 1 and not flags[last]:
        last -= 1
    return first, last


def found(
    curves: RunCurves,
    stretch: tuple[int, int],
    *,
    rule: str,
    problem: str,
    numbers: dict[str, float],
    metric: str,
    change: str,
) -> Finding:
    """Return a finding about the steps between two places."""
    first, last = stretch
    return Finding(
        rule=rule,
        onset=curves.steps[first],
        until=None if last == len(curves.steps) - 1 else curves.steps[last],
        problem=problem,
        numbers=numbers,
        metric=metric,
        change=change,
    )


LEVELS = (
    Level(
        rule="failing-rollouts",
        summary="a fifth of the rollouts fail",
        metric="reward/exception_rate",
        limit=0.2,
        problem="{value} of the rollouts fail (limit {limit})",
        change="Read the errors with `art show RUN --attempts --failed`, and fix what they need.",
    ),
    Level(
        rule="truncation",
        summary="a fifth of the attempts have an answer that max_tokens cut off",
        metric="data/step_num_truncated",
        of="data/step_num_trajectories",
        values=truncated_share,
        limit=0.2,
        problem="{value} of the attempts are cut off by max_tokens (limit {limit})",
        change="Raise max_tokens, or let the reward count length.",
    ),
    Level(
        rule="clipped-share",
        summary="three tenths of the trained tokens are clipped or masked",
        metric="loss/clipped_token_fraction",
        limit=0.3,
        problem="{value} of the trained tokens are clipped or masked (limit {limit})",
        change="Lower learning_rate or the number of optimizer steps per step, or widen epsilon.",
    ),
    Level(
        rule="engine-mismatch",
        summary="log-probs of engine and trainer differ by a tenth of a nat",
        metric="loss/engine_logprob_diff",
        limit=0.1,
        problem="log-probs of engine and trainer differ by {value} nats (limit {limit})",
        change="Give the engine the dtype of the trainer, or choose another engine.",
        shown=".2g",
    ),
    Level(
        rule="staleness",
        summary="the weights behind the attempts are four steps old",
        metric="offpolicy/steps_mean",
        limit=4.0,
        problem="attempts are {value} steps older than the weights they train (limit {limit})",
        change="Lower max_steps_off_policy or the number of concurrent rollouts.",
        shown=".2g",
    ),
)


def _dead(curves: RunCurves) -> list[float]:
    prefix = "data/step_num_groups_"
    trainable = curves.ratio(f"{prefix}trainable", f"{prefix}submitted")
    logged = curves.ratio("train/num_groups_trainable", "train/num_groups_submitted")
    return [
        1 - (own if math.isfinite(own) else other)
        for own, other in zip(trainable, logged, strict=True)
    ]


def _are_right(curves: RunCurves) -> list[bool]:
    """Return whether the mean reward is in the upper half of its range.

    The range reaches from 0, or the lowest mean, to 1, or the highest; to 0 if no mean is above it.
    """
    reward = curves.column("reward/mean")
    known = [0.0, *finite(reward)]
    known += [1.0] if max(known) > 0 else []
    middle = (min(known) + max(known)) / 2
    return [value > middle for value in smoothed(reward, WIDTH)]


def dead_groups_right(curves: RunCurves) -> Iterator[Finding]:
    """Find steps whose groups have no spread because their attempts are right."""
    yield from _dead_groups(
        curves,
        right=True,
        change="Give harder scenarios, or stop: the model can do these.",
    )


def dead_groups_wrong(curves: RunCurves) -> Iterator[Finding]:
    """Find steps whose groups have no spread because their attempts are wrong."""
    yield from _dead_groups(
        curves,
        right=False,
        change="Give easier scenarios, larger groups or a reward for parts of the task.",
    )


def _dead_groups(curves: RunCurves, *, right: bool, change: str) -> Iterator[Finding]:
    dead, word = _dead(curves), "right" if right else "wrong"
    sides = [side is right for side in _are_right(curves)]
    flags = [share >= DEAD_SHARE for share in smoothed(dead, WIDTH)]
    both = [flag and side for flag, side in zip(flags, sides, strict=True)]
    stretch = last_stretch(both, SOLVED_STEPS if right else STEPS)
    if stretch is not None:
        share = _mean(dead[stretch[0] : stretch[1] + 1])
        yield found(
            curves,
            stretch,
            rule=f"dead-groups-{word}",
            problem=f"{share:.0%} of the groups have equal rewards: their attempts are all {word}",
            numbers={"share": share, "limit": DEAD_SHARE},
            metric="data/step_num_groups_trainable",
            change=change,
        )


def no_learning_rate(curves: RunCurves) -> Iterator[Finding]:
    """Find steps whose learning rate changes nothing: below 1e-8, or a 1,000th of the highest."""
    rates = curves.column("loss/learning_rate")
    limit = max(LEARNS_NOTHING, SMALL_PART * max(finite(rates), default=0.0))
    stretch = last_stretch([rate <= limit for rate in rates], SOLVED_STEPS)
    if stretch is not None:
        rate = rates[stretch[1]]
        yield found(
            curves,
            stretch,
            rule="no-learning-rate",
            problem=f"the learning rate is {rate:.2g}, which changes nothing (limit {limit:.2g})",
            numbers={"value": rate, "limit": limit},
            metric="loss/learning_rate",
            change="Raise learning_rate, or let its schedule last as long as the run.",
        )
