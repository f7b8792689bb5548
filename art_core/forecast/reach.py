"""The step at which a reward is reached, as far as its curve shows one; pure.

The curve is a line, or nears a ceiling exponentially at one of several speeds. Each form counts by
how well it fits.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Literal

import attrs

from art_core.forecast.interval import DRAWS, of_draws

MIN_VALUES = 8
"""Values of a reward below which its curve is not continued."""
HORIZON = 10
"""A reward counts as not reached beyond this many times the steps so far."""
AVERAGED = 5
"""A reward is reached when the mean of this many values is."""
SURE = 0.9
"""The share of curves from which on the answer is yes; no, if so many do not reach the reward."""
RISES = 0.95
"""The share of curves that must rise before a rise is continued."""
_SPEEDS = (0.1, 0.2, 0.4, 0.8, 1.6, math.inf)
_MAX_CORRELATION = 0.8

Verdict = Literal["reached", "expected", "not reached", "open"]


@attrs.frozen(kw_only=True)
class Reach:
    """Whether and when a metric reaches a value.

    `chance` is the share of continued curves that reach it before `limit`. `low90` to `high90` are
    steps, None where the curves do not reach it before the limit. `verdict` is "open" where the
    values show no answer; `reason` states why.
    """

    metric: str
    target: float
    verdict: Verdict
    reason: str
    newest: float | None = None
    chance: float | None = None
    limit: int | None = None
    low90: int | None = None
    low50: int | None = None
    median: int | None = None
    high50: int | None = None
    high90: int | None = None


@attrs.frozen
class _Form:
    """A form of the curve, fitted: value = level + rise * (shape - the mean of the shape).

    The place is 0 at the first value and 1 at the newest; the shape is the place itself, or
    1 - exp(-place / speed).
    """

    speed: float
    level: float
    rise: float
    middle: float
    square: float
    error: float

    def place_of(self, shape: float) -> float:
        """Return the place where the shape has a value; infinite beyond its ceiling."""
        if math.isinf(self.speed):
            return shape
        return -self.speed * math.log1p(-shape) if shape < 1 else math.inf


def reach(metric: str, curve: Mapping[int, float], target: float) -> Reach:
    """Forecast when a metric reaches a value, from its values by step."""
    points = sorted((step, value) for step, value in curve.items() if math.isfinite(value))
    if len(points) < MIN_VALUES:
        reason = f"{metric} has {len(points)} values; its curve is continued from {MIN_VALUES} on"
        return Reach(metric=metric, target=target, verdict="open", reason=reason)
    values = [value for _, value in points]
    newest = fmean(values[-AVERAGED:])
    for end in range(AVERAGED, len(values) + 1):
        if fmean(values[end - AVERAGED : end]) >= target:
            step = points[end - 1][0]
            reason = f"the mean of {AVERAGED} values is {target:g} at step {step}"
            return Reach(
                metric=metric, target=target, verdict="reached", reason=reason, newest=newest,
                chance=1.0, low90=step, low50=step, median=step, high50=step, high90=step,
            )  # fmt: skip
    return _continued(metric, points, target, newest)


def _continued(
    metric: str, points: Sequence[tuple[int, float]], target: float, newest: float
) -> Reach:
    first, last = points[0][0], points[-1][0]
    places = [(step - first) / (last - first) for step, _ in points]
    values = [value for _, value in points]
    limit = first + HORIZON * (last - first)
    draws, rising = _drawn(places, values, target)
    steps = [first + (last - first) * place for place in draws]
    chance = sum(step <= limit for step in steps) / len(steps)
    found = of_draws([min(step, 2.0 * limit + 1) for step in steps])
    at = {
        name: None if (step := getattr(found, name)) > limit else math.ceil(step - 1e-6)
        for name in ("low90", "low50", "median", "high50", "high90")
    }
    verdict: Verdict = "open"
    if rising < RISES:
        reason = f"{metric} shows no rise: only {rising:.0%} of the fitted curves do"
    else:
        reason = f"{chance:.0%} of the fitted curves reach {target:g} before step {limit}"
        verdict = "expected" if chance >= SURE else "open" if chance > 1 - SURE else "not reached"
    return Reach(
        metric=metric, target=target, verdict=verdict, reason=reason, newest=newest,
        chance=chance, limit=limit, **at,
    )  # fmt: skip


def _drawn(
    places: Sequence[float], values: Sequence[float], target: float
) -> tuple[list[float], float]:
    """Draw curves from their posterior distribution; return the place where each reaches the
    target, and the share of curves that rise.
    """
    forms = [_form(speed, places, values) for speed in _SPEEDS]
    best = min(forms, key=lambda form: form.error)
    inflation = _inflation(best, places, values)
    freedom = max(1.0, len(values) / inflation - 2)
    floor = max(best.error, 1e-12)
    weights = [(max(form.error, 1e-12) / floor) ** (-freedom / 2) for form in forms]
    source = random.Random(f"{len(values)} {target}")
    found, rising = [], 0
    for form in source.choices(forms, weights, k=DRAWS):
        variance = form.error / (len(values) - 2) * inflation
        deviation = math.sqrt(variance * freedom / 2 / source.gammavariate(freedom / 2, 1.0))
        rise = form.rise + deviation / math.sqrt(form.square) * source.gauss(0.0, 1.0)
        level = form.level + deviation / math.sqrt(len(values)) * source.gauss(0.0, 1.0)
        rising += rise > 0
        place = form.place_of(form.middle + (target - level) / rise) if rise > 0 else math.inf
        found.append(max(1.0, place))
    return found, rising / DRAWS


def _form(speed: float, places: Sequence[float], values: Sequence[float]) -> _Form:
    shapes = _shapes(speed, places)
    middle, level = fmean(shapes), fmean(values)
    square = math.fsum((shape - middle) ** 2 for shape in shapes)
    products = ((s - middle) * (v - level) for s, v in zip(shapes, values, strict=True))
    rise = math.fsum(products) / square
    form = _Form(speed, level, rise, middle, square, 0.0)
    error = math.fsum(residual**2 for residual in _residuals(form, places, values))
    return attrs.evolve(form, error=error)


def _shapes(speed: float, places: Sequence[float]) -> list[float]:
    return [p if math.isinf(speed) else -math.expm1(-p / speed) for p in places]


def _residuals(form: _Form, places: Sequence[float], values: Sequence[float]) -> list[float]:
    shapes = _shapes(form.speed, places)
    fitted = [form.level + form.rise * (shape - form.middle) for shape in shapes]
    return [value - fit for value, fit in zip(values, fitted, strict=True)]


def _inflation(form: _Form, places: Sequence[float], values: Sequence[float]) -> float:
    """Return how many values count as one, since neighbours are alike: (1 + r) / (1 - r) with the
    correlation r of neighbours (Bayley and Hammersley 1946).
    """
    residuals = _residuals(form, places, values)
    whole = math.fsum(residual**2 for residual in residuals)
    pairs = math.fsum(a * b for a, b in pairwise(residuals))
    correlation = min(max(0.0, pairs / whole), _MAX_CORRELATION) if whole else 0.0
    return (1 + correlation) / (1 - correlation)
