"""The costs of a run before its first step, from a few pilot attempts; pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import attrs

from art_core.forecast.forecast import Line
from art_core.forecast.interval import Interval, of_sum
from art_core.metrics.receipt import TokenRates, TokenUsage, price

OTHER_MODELS = 3
"""Hosted models of another name that are shown, the cheapest."""
TOKENS = {"prompt": "prompt tokens", "sampled": "sampled tokens", "trained": "tokens trained"}


@attrs.frozen(kw_only=True)
class PilotAttempt:
    """What an attempt used: tokens of all its prompts, those sampled, those of its training
    sequences, and seconds.
    """

    prompt: float
    sampled: float
    trained: float
    seconds: float

    @property
    def tokens(self) -> float:
        """All tokens that the model read or sampled."""
        return self.prompt + self.sampled


@attrs.frozen
class DeviceTime:
    """The device of the pilots: the leaf of its costs, their dollars, and dollars per second."""

    leaf: str
    usd: float
    usd_per_s: float


@attrs.frozen(kw_only=True)
class Pilots:
    """What the pilots used: the attempts that ended, how many failed, dollars by other leaves than
    that of the `device`.

    `startup_s` are the seconds before the first attempt, `wall_s` those of all attempts together,
    `training_s` those of a step that trained on them, 0.0 without it. `own` are the leaves of
    tokens that the model itself cost. `stored` are the bytes of the attempts.
    """

    attempts: tuple[PilotAttempt, ...]
    failures: int
    usd: Mapping[str, float]
    own: frozenset[str]
    device: DeviceTime | None = None
    startup_s: float
    wall_s: float
    training_s: float
    stored: float

    def shares(self) -> list[float]:
        """Return each attempt's part of what the pilots used, by its tokens; the mean is 1."""
        tokens = [attempt.tokens + 1 for attempt in self.attempts]
        whole = math.fsum(tokens)
        return [each * len(tokens) / whole for each in tokens]

    @property
    def made(self) -> int:
        """The number of pilots, failed ones included."""
        return len(self.attempts) + self.failures


@attrs.frozen(kw_only=True)
class PlannedRun:
    """A run that is planned: `steps` of so many `scenarios` with `group` attempts each, and
    `evaluations` of so many attempts.
    """

    steps: int
    scenarios: int
    group: int
    evaluations: int = 0
    attempts_per_evaluation: int = 0

    @property
    def attempts_per_step(self) -> int:
        """The attempts of a step."""
        return self.scenarios * self.group

    @property
    def trained(self) -> int:
        """The attempts that are trained."""
        return self.steps * self.attempts_per_step

    @property
    def attempts(self) -> int:
        """All attempts, those of evaluations included."""
        return self.trained + self.evaluations * self.attempts_per_evaluation


@attrs.frozen(kw_only=True)
class Offer:
    """One way to run the plan: where, on which model, dollars in all, and on which assumptions.

    `usd` is None where no price is known. `same` states that the model is the one of the pilots.
    """

    where: str
    model: str
    usd: Interval | None
    assumes: str
    same: bool = True


def planned_lines(pilots: Pilots, plan: PlannedRun) -> list[Line]:
    """Forecast what the plan uses, each attempt as the pilots did."""

    def line(name: str, unit: str, known: float) -> Line:
        """Return the line of an amount of which each attempt uses as much as a pilot."""
        whole = known / pilots.made * plan.attempts
        return Line(name, unit, known, _spread(pilots, plan, whole), None)

    lines = [line(leaf, "usd", usd) for leaf, usd in sorted(pilots.usd.items())]
    seconds = _seconds(pilots, plan)
    device = pilots.device
    if device is not None:
        coming = None if seconds is None else _times(seconds, device.usd_per_s)
        lines.append(Line(device.leaf, "usd", device.usd, coming, None))
    if lines:
        lines.insert(0, _sum_of(lines))
    for kind, name in TOKENS.items():
        values = [getattr(attempt, kind) for attempt in pilots.attempts]
        count = plan.trained if kind == "trained" else plan.attempts
        lines.append(Line(name, "token", math.fsum(values), _of_all(values, count), None))
    known = (pilots.startup_s + pilots.wall_s + pilots.training_s) / 3600
    hours = None if seconds is None else _times(seconds, 1 / 3600)
    lines.append(Line("wall clock", "hour", known, hours, None))
    lines.append(line("trajectories", "byte", pilots.stored))
    return lines


def _sum_of(lines: Sequence[Line]) -> Line:
    """Return the sum of costs that rise and fall together: bound by bound."""
    parts = [attrs.astuple(line.coming) for line in lines if line.coming is not None]
    whole = Interval(*map(math.fsum, zip(*parts, strict=True))) if parts else None
    return Line("all", "usd", math.fsum(line.spent for line in lines), whole, None)


def _seconds(pilots: Pilots, plan: PlannedRun) -> Interval | None:
    """Return the seconds of the plan, which depend on how well attempts share the device.

    At best a step takes as long as the pilots together, however many attempts it has; at worst each
    attempt takes as long as a pilot. The interval lies between, evenly by its logarithm.
    """
    spread = _of_all(pilots.shares(), plan.attempts)
    if spread is None:
        return None
    rounds = [
        (plan.steps, plan.attempts_per_step, pilots.wall_s),
        (plan.evaluations, plan.attempts_per_evaluation, pilots.wall_s),
        (plan.steps, plan.attempts_per_step, pilots.training_s),
    ]
    slow = math.fsum(count * size / pilots.made * took for count, size, took in rounds)
    fast = math.fsum(count * min(1.0, size / pilots.made) * took for count, size, took in rounds)
    low = pilots.startup_s + fast * spread.low90 / plan.attempts
    high = pilots.startup_s + slow * spread.high90 / plan.attempts
    # 5 % and 95 % are the ends, so that 25 % and 75 % are 2/9 of the way from them
    low50, median, high50 = (low * (high / low) ** part for part in (2 / 9, 1 / 2, 7 / 9))
    return Interval(median, low50, median, high50, low, high)


def _times(interval: Interval, factor: float) -> Interval:
    return Interval(*(factor * value for value in attrs.astuple(interval)))


def _spread(pilots: Pilots, plan: PlannedRun, expected: float) -> Interval | None:
    """Return the interval of an amount that differs between attempts as their tokens do."""
    found = _of_all(pilots.shares(), plan.attempts)
    return None if found is None else _times(found, expected / plan.attempts)


def _of_all(values: Sequence[float], count: int) -> Interval | None:
    return of_sum(values, count, trend=False)


def hosted_usd(
    pilots: Pilots, plan: PlannedRun, rates: TokenRates, others: float = 0.0
) -> Interval | None:
    """Forecast the plan at a service that bills by the token; `others` are dollars for all else."""
    if rates.train_per_million is None or not any(a.sampled for a in pilots.attempts):
        return None
    million = 10**6
    of_attempt = [
        price(TokenUsage(input_tokens=round(a.prompt), output_tokens=round(a.sampled)), rates)
        for a in pilots.attempts
    ]
    of_training = [a.trained * rates.train_per_million / million for a in pilots.attempts]
    share = plan.trained / plan.attempts
    whole = [a + b * share for a, b in zip(of_attempt, of_training, strict=True)]
    found = _of_all(whole, plan.attempts)
    return None if found is None else found.plus(others)


def others_usd(pilots: Pilots, plan: PlannedRun) -> float:
    """Return the dollars of the plan for all but the model itself, such as judges."""
    each = math.fsum(usd for leaf, usd in pilots.usd.items() if leaf not in pilots.own)
    return each / pilots.made * plan.attempts


def cheapest(offers: Sequence[Offer]) -> Offer | None:
    """Return the offer for the pilots' model with the lowest median; None without a price."""
    priced = [(offer.usd.median, n) for n, offer in enumerate(offers) if offer.usd and offer.same]
    return offers[min(priced)[1]] if priced else None
