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


@attrs.frozen(kw_only=True)
class Pilots:
    """What the pilots used: the attempts that ended, how many failed, dollars by cost leaf.

    `wall_s` are the seconds of all attempts together, `training_s` those of the one step that
    trained on them, 0.0 without it. `own` are the leaves that the model itself cost: a device, or
    tokens of its service. `stored` are the bytes of the attempts.
    """

    attempts: tuple[PilotAttempt, ...]
    failures: int
    usd: Mapping[str, float]
    own: frozenset[str]
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
    attempts of evaluations in all.
    """

    steps: int
    scenarios: int
    group: int
    evaluated: int = 0

    @property
    def trained(self) -> int:
        """The attempts that are trained."""
        return self.steps * self.scenarios * self.group

    @property
    def attempts(self) -> int:
        """All attempts, those of evaluations included."""
        return self.trained + self.evaluated


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

    def line(name: str, unit: str, known: float, each: float) -> Line:
        """Return the line of an amount of which `each` attempts use as much as a pilot."""
        return Line(name, unit, known, _spread(pilots, plan, known / pilots.made * each), None)

    counts = {leaf: _paying(pilots, plan, leaf) for leaf in pilots.usd}
    lines = [line(leaf, "usd", usd, counts[leaf]) for leaf, usd in sorted(pilots.usd.items())]
    if lines:
        known = math.fsum(pilots.usd.values())
        usd = math.fsum(usd / pilots.made * counts[leaf] for leaf, usd in pilots.usd.items())
        lines.insert(0, Line("all", "usd", known, _spread(pilots, plan, usd), None))
    for kind, name in TOKENS.items():
        values = [getattr(attempt, kind) for attempt in pilots.attempts]
        count = plan.trained if kind == "trained" else plan.attempts
        lines.append(Line(name, "token", math.fsum(values), _of_all(values, count), None))
    seconds = pilots.wall_s * plan.attempts + pilots.training_s * plan.trained
    hours = _spread(pilots, plan, seconds / pilots.made / 3600)
    known = (pilots.wall_s + pilots.training_s) / 3600
    lines.append(Line("wall clock", "hour", known, hours, None))
    lines.append(line("trajectories", "byte", pilots.stored, plan.attempts))
    return lines


def _paying(pilots: Pilots, plan: PlannedRun, leaf: str) -> float:
    """Return how many attempts pay for a leaf; an evaluated attempt pays no time of training."""
    sampling = 1.0
    if leaf in pilots.own and pilots.training_s:
        sampling = pilots.wall_s / (pilots.wall_s + pilots.training_s)
    return plan.trained + plan.evaluated * sampling


def _spread(pilots: Pilots, plan: PlannedRun, expected: float) -> Interval | None:
    """Return the interval of an amount that differs between attempts as their tokens do."""
    found = _of_all(pilots.shares(), plan.attempts)
    factor = expected / plan.attempts
    return None if found is None else Interval(*(factor * v for v in attrs.astuple(found)))


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
