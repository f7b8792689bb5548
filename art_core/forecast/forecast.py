"""A forecast: what a run will use up to a step, from what its steps and evaluations have used."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import median

import attrs

from art_core.base.errors import ConfigError
from art_core.forecast.interval import (
    Interval,
    growth_of,
    mean_of_sum,
    of_draws,
    sum_draws,
)
from art_core.forecast.usage import Amounts, Usage

MIN_STEPS = 2


@attrs.frozen
class Line:
    """A quantity: what was `spent` of it, and the interval of what is still to come.

    `growth` is what a step uses more than the one before, such as 0.01 for 1 %; None if the steps
    show no trend. `coming` is None if too few of them used anything.
    """

    name: str
    unit: str
    spent: float
    coming: Interval | None
    growth: float | None

    @property
    def total(self) -> Interval | None:
        """The whole: what was spent and what is to come."""
        return None if self.coming is None else self.coming.plus(self.spent)


@attrs.frozen
class Forecast:
    """What a run will use between a step and another one, evaluations included."""

    run: str
    step: int
    to_step: int
    evaluations: int
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()

    def costs(self) -> dict[str, Line]:
        """Return the lines in dollars, by path below `costs/`."""
        return {line.name: line for line in self.lines if line.unit == "usd"}


def forecast(usage: Usage, to_step: int) -> Forecast:
    """Forecast what a run uses up to a step.

    Steps and evaluations are forecast on their own and added. Evaluations go on as often as they
    came. Raises ConfigError for a step that is trained, and below two trained steps.
    """
    if len(usage.steps) < MIN_STEPS:
        raise ConfigError(
            f"{usage.run} has {len(usage.steps)} trained steps; a forecast needs {MIN_STEPS}",
            "Before the first step: art forecast module:rollout --scenarios FILE --model NAME.",
        )
    step = usage.steps[-1]
    if to_step <= step:
        raise ConfigError(f"{usage.run} has trained step {step}; step {to_step} is no later one")
    evaluations, note = coming_evaluations(usage.evaluated, to_step)
    lines = [line_of(each, to_step - step, evaluations) for each in usage.amounts]
    notes = (*usage.notes, *([note] if note else []))
    return Forecast(usage.run, step, to_step, evaluations, tuple(lines), notes)


def line_of(amounts: Amounts, steps: int, evaluations: int) -> Line:
    """Forecast one quantity over so many steps and evaluations."""
    parts = [
        _part(values, count, seed)
        for seed, (values, count) in enumerate(
            [(amounts.of_steps, steps), (amounts.of_evaluations, evaluations)]
        )
        if count and any(value > 0 for value in values)
    ]
    coming = None
    if None not in parts:
        known = [part for part in parts if part is not None] or [([0.0, 0.0], 0.0)]
        draws = [sum(each) for each in zip(*(draws for draws, _ in known), strict=True)]
        coming = of_draws(draws, sum(mean for _, mean in known))
    growth = growth_of(amounts.of_steps)
    return Line(amounts.name, amounts.unit, amounts.spent, coming, growth)


def _part(values: Sequence[float], count: int, seed: int) -> tuple[list[float], float] | None:
    """Return draws of the sum of the next `count` values, and its mean; None below two values."""
    draws, mean = sum_draws(values, count, seed), mean_of_sum(values, count)
    return None if draws is None or mean is None else (draws, mean)


def coming_evaluations(evaluated: Sequence[int], to_step: int) -> tuple[int, str]:
    """Return how many evaluations come up to a step, by the usual distance of those before, and a
    note if that is not known.
    """
    distances = [after - before for before, after in pairwise(evaluated)]
    if not distances:
        note = "one evaluation shows no distance to the next: none is in the forecast"
        return 0, note if evaluated else ""
    return max(0, to_step - evaluated[-1]) // max(1, round(median(distances))), ""
