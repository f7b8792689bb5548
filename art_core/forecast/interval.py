"""Intervals of the amounts that come next in a series, such as the dollars of steps; pure.

The logarithms of the newest amounts lie around a straight line with normal errors. A forecast
includes the errors of the line itself, so that it is wide after few amounts.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist

import attrs

WINDOW = 32
"""The newest amounts, to which the line is fitted; for a sum the newest third if that is more.
Growth seldom stays the same for longer.
"""
MIN_TREND = 8
"""Amounts from which on the line has a slope; with fewer it is level."""
GROWTH = 3.0
"""The standard deviation of the logarithm of the growth over the amounts seen and those to come,
before any amount was seen. It is wide, so that it only rules out absurd growth after few amounts.
"""
DRAWS = 1000
_PROBABILITIES = (0.25, 0.5, 0.75, 0.05, 0.95)
_MAX_LOG = 300.0
_MAX_DEVIATION = 10.0
_EXACT_STEPS = 8
_MANY_STEPS = 200


@attrs.frozen
class Interval:
    """A forecast of a number: its mean, its median, and where it lies with 50 % and 90 %."""

    mean: float
    low50: float
    median: float
    high50: float
    low90: float
    high90: float

    def plus(self, known: float) -> Interval:
        """Return the forecast of the number and a known amount together."""
        return Interval(*(value + known for value in attrs.astuple(self)))


@attrs.frozen
class _Line:
    """A line through logarithms: its level in the middle of the places, its slope per place, and
    the deviation around it.

    `ahead` is the distance from the middle to the last place, `square` the sum of the squared
    distances of the places from their middle. `smear` is the mean of the exponentials of the
    residuals, by which the exponential of a level becomes a mean (Duan 1983, "Smearing estimate").
    `positive` of `places` amounts were not 0.
    """

    level: float
    slope: float
    deviation: float
    freedom: int
    ahead: float
    square: float
    smear: float
    positive: int
    places: int

    @property
    def sloped(self) -> bool:
        """True if the slope was fitted, which takes a degree of freedom."""
        return self.freedom == self.positive - 2

    @property
    def chance(self) -> float:
        """The chance that an amount is not 0, by Jeffreys' prior; 1 if none was 0."""
        return 1.0 if self.positive == self.places else (self.positive + 0.5) / (self.places + 1)


def of_next(values: Sequence[float]) -> Interval | None:
    """Forecast the next of a series of amounts; None below two amounts.

    The logarithm has Student's t distribution around the line, as in the prediction interval of a
    regression (Montgomery, Peck and Vining, "Introduction to Linear Regression Analysis", 2.5).
    NaN, infinite and negative values are gaps. Where amounts of 0 occur, they have a chance.
    """
    line = _fitted(values[-WINDOW:])
    if line is None:
        return None
    distance = line.ahead + 1
    scale = line.deviation * math.sqrt(
        1 + 1 / max(1, line.positive) + (distance**2 / line.square if line.sloped else 0.0)
    )
    centre = line.level + line.slope * distance
    zero = 1 - line.chance
    quantiles = [
        _exp(centre + scale * t_quantile((p - zero) / line.chance, line.freedom))
        if p > zero
        else 0.0
        for p in _PROBABILITIES
    ]
    return _interval(line.chance * line.smear * _exp(centre), quantiles)


def of_sum(values: Sequence[float], steps: int, *, trend: bool = True) -> Interval | None:
    """Forecast the sum of the next `steps` of a series of amounts; None below two amounts.

    As `sum_draws`, whose quantiles these are.
    """
    draws = sum_draws(values, steps, trend=trend)
    return None if draws is None else of_draws(draws, mean_of_sum(values, steps, trend=trend))


def sum_draws(
    values: Sequence[float], steps: int, seed: int = 0, *, trend: bool = True
) -> list[float] | None:
    """Draw from the distribution of the sum of the next `steps` amounts; None below two amounts.

    The line's deviation, level and slope are drawn from their posterior distributions (Gelman et
    al., "Bayesian Data Analysis", 14.2, with the prior `GROWTH` of the slope). A rising level goes
    on along a straight line, a falling one along an exponential. A sum of more than a few amounts
    is lognormal with their mean and variance (Fenton 1960). `values` are as in `of_next`; without
    `trend` their order means nothing, and all of them count. Draws with different seeds are
    independent.
    """
    line = _fitted(_recent(values)) if trend else _fitted(values, trend=False)
    if line is None:
        return None
    source = random.Random(f"{seed} {steps} {len(values)}")
    return [_draw(line, steps, source) for _ in range(DRAWS)]


def mean_of_sum(values: Sequence[float], steps: int, *, trend: bool = True) -> float | None:
    """Return the mean of the sum of the next `steps` amounts; None below two amounts.

    It is that of the fitted line. With fewer than `MIN_TREND` amounts it is their plain mean.
    """
    line = _fitted(_recent(values)) if trend else _fitted(values, trend=False)
    if line is None:
        return None
    slope, _ = _posterior_slope(line, steps, line.deviation)
    first, _ = _pace_sums(slope, steps)
    return line.chance * line.smear * first * _exp(line.level + slope * line.ahead)


def growth_of(values: Sequence[float]) -> float | None:
    """Return the growth of a series per place, such as 0.01 for 1 %; None if it shows none.

    It shows one if the slope is more than two standard errors away from 0.
    """
    line = _fitted(_recent(values))
    if line is None or not line.sloped:
        return None
    error = line.deviation / math.sqrt(line.square)
    return math.expm1(line.slope) if abs(line.slope) > 2 * error else None


def of_draws(draws: Sequence[float], mean: float | None = None) -> Interval:
    """Return the interval of a sample, such as the sums of several samples item by item."""
    ranked = sorted(draws)
    last = len(ranked) - 1
    quantiles = []
    for p in _PROBABILITIES:
        low = math.floor(p * last)
        high = min(low + 1, last)
        quantiles.append(ranked[low] + (p * last - low) * (ranked[high] - ranked[low]))
    return _interval(math.fsum(draws) / len(draws) if mean is None else mean, quantiles)


def _interval(mean: float, quantiles: Sequence[float]) -> Interval:
    low50, median, high50, low90, high90 = quantiles
    # A mean beyond the interval comes from a few wild amounts: it is no number to plan with.
    return Interval(min(max(mean, low90), high90), low50, median, high50, low90, high90)


def _recent(values: Sequence[float]) -> Sequence[float]:
    return values[-max(WINDOW, len(values) // 3) :]


def _fitted(values: Sequence[float], *, trend: bool = True) -> _Line | None:
    """Fit the line to the positive amounts; None if fewer than two amounts are known."""
    known = [
        (place, value)
        for place, value in enumerate(values)
        if value is not None and 0 <= value < math.inf
    ]
    if len(known) < 2:
        return None
    points = [(place, math.log(value)) for place, value in known if value > 0]
    if len(points) < 2:
        level = points[0][1] if points else -math.inf
        return _Line(level, 0.0, 0.0, 1, 0.0, 0.0, 1.0, len(points), len(known))
    sloped = trend and len(points) >= MIN_TREND
    return _line(points, len(known), len(values) - 1, sloped=sloped)


def _line(points: Sequence[tuple[int, float]], places: int, last: int, *, sloped: bool) -> _Line:
    count = len(points)
    middle = math.fsum(place for place, _ in points) / count
    level = math.fsum(log for _, log in points) / count
    square = math.fsum((place - middle) ** 2 for place, _ in points)
    product = math.fsum((place - middle) * (log - level) for place, log in points)
    slope = product / square if sloped else 0.0
    residuals = [log - level - slope * (place - middle) for place, log in points]
    freedom = count - (2 if sloped else 1)
    deviation = math.sqrt(math.fsum(residual**2 for residual in residuals) / freedom)
    smear = math.fsum(map(_exp, residuals)) / count
    return _Line(level, slope, deviation, freedom, last - middle, square, smear, count, places)


def _draw(line: _Line, steps: int, source: random.Random) -> float:
    """Draw one sum."""
    half = line.freedom / 2
    deviation = line.deviation * math.sqrt(half / source.gammavariate(half, 1.0))
    deviation = min(deviation, _MAX_DEVIATION)
    slope, spread = _posterior_slope(line, steps, deviation)
    slope += spread * source.gauss(0.0, 1.0)
    level = line.level + slope * line.ahead
    level += deviation / math.sqrt(max(1, line.positive)) * source.gauss(0.0, 1.0)
    count = steps
    if line.chance < 1.0:
        zeros = line.places - line.positive
        chance = source.betavariate(line.positive + 0.5, zeros + 0.5)
        count = _hits(chance, steps, source)
    if count == 0:  # also without any step
        return 0.0
    if steps <= _EXACT_STEPS:
        paces = [_pace(slope, ahead) for ahead in range(1, steps + 1)]
        part = count / steps
        return part * math.fsum(
            pace * _exp(level + deviation * source.gauss(0.0, 1.0)) for pace in paces
        )
    return _drawn_total(level, slope, deviation, steps, source) * count / steps


def _hits(chance: float, steps: int, source: random.Random) -> int:
    """Draw how many of the steps are hit: binomial, for many steps by the normal distribution."""
    if steps <= _MANY_STEPS:
        return sum(source.random() < chance for _ in range(steps))
    drawn = source.gauss(steps * chance, math.sqrt(steps * chance * (1 - chance)))
    return min(max(0, round(drawn)), steps)


def _drawn_total(
    level: float, slope: float, deviation: float, steps: int, source: random.Random
) -> float:
    """Draw the sum of lognormal amounts, as one lognormal with the sum's mean and variance."""
    first, second = _pace_sums(slope, steps)
    variance = math.log1p(math.expm1(deviation**2) * second / first**2)
    centre = level + math.log(first) + (deviation**2 - variance) / 2
    return _exp(centre + math.sqrt(variance) * source.gauss(0.0, 1.0))


def _posterior_slope(line: _Line, steps: int, deviation: float) -> tuple[float, float]:
    """Return the mean and the deviation of the slope, after the amounts and its prior."""
    if not line.sloped:
        return 0.0, 0.0
    prior = (GROWTH / (line.places + steps)) ** 2
    error = deviation**2 / line.square
    return line.slope * prior / (prior + error), math.sqrt(prior * error / (prior + error))


def _pace(slope: float, ahead: int) -> float:
    """Return the level so many steps ahead, as a multiple of the last one."""
    return 1 + slope * ahead if slope > 0 else math.exp(slope * ahead)


def _pace_sums(slope: float, steps: int) -> tuple[float, float]:
    """Return the sums of the paces of the steps, and of their squares."""
    if slope >= 0:
        whole = steps * (steps + 1)
        squares = steps + slope * whole + slope**2 * whole * (2 * steps + 1) / 6
        return steps + slope * whole / 2, squares
    return _geometric(slope, steps), _geometric(2 * slope, steps)


def _geometric(slope: float, steps: int) -> float:
    return math.exp(slope) * math.expm1(slope * steps) / math.expm1(slope)


def _exp(log: float) -> float:
    return math.exp(min(log, _MAX_LOG))


@lru_cache(maxsize=4096)
def t_quantile(p: float, degrees: int) -> float:
    """Return the quantile of Student's t distribution, to 0.3 % from 3 degrees of freedom on.

    One and two degrees have closed forms; for more it is the Cornish-Fisher expansion of
    Abramowitz and Stegun, 26.7.5.
    """
    if degrees == 1:
        return math.tan(math.pi * (p - 0.5))
    if degrees == 2:
        centred = 2 * p - 1
        return centred * math.sqrt(2 / (1 - centred**2))
    z = NormalDist().inv_cdf(p)
    powers = {n: z**n for n in (3, 5, 7, 9)}
    terms = (
        (powers[3] + z) / 4,
        (5 * powers[5] + 16 * powers[3] + 3 * z) / 96,
        (3 * powers[7] + 19 * powers[5] + 17 * powers[3] - 15 * z) / 384,
        (79 * powers[9] + 776 * powers[7] + 1482 * powers[5] - 1920 * powers[3] - 945 * z) / 92160,
    )
    return z + math.fsum(term / degrees**n for n, term in enumerate(terms, 1))
