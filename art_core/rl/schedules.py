"""Learning rates over a run: a schedule gives the rate of each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from art_core.base.errors import ConfigError
from art_core.base.numbers import number_or_none
from art_core.rl.config import count, not_negative, one_of, optional, positive, step

SHAPES = ("constant", "linear", "cosine")
RateOrSchedule = float | Callable[[int], float]
"""A learning rate, or what returns the rate of a step: a `Schedule` or a function of your own."""


def _field(check: Callable[[str, Any], None], **options: Any) -> Any:
    return attrs.field(validator=lambda _, field, value: check(field.name, value), **options)


@attrs.frozen
class Schedule:
    """A learning rate that changes over the steps of a run.

    The rate of a step depends only on the step and on these values, so a run that resumes goes on
    where it was. Steps count from 0, the first one.

    - `peak`: the rate after the warm-up.
    - `shape`: "constant"; "linear" and "cosine" fall from `peak` to `final` over `total_steps`.
    - `total_steps`: the steps of the whole run, which "linear" and "cosine" need.
    - `warmup_steps`: over these the rate rises in equal parts: step 0 has peak / `warmup_steps`.
    - `final`: the rate after `total_steps`. With 0, the default, the run ends there: a further step
      is a ConfigError.
    """

    peak: float = _field(positive)
    shape: str = _field(one_of(SHAPES), default="constant")
    total_steps: int | None = _field(optional(count), default=None, kw_only=True)
    warmup_steps: int = _field(step, default=0, kw_only=True)
    final: float = _field(not_negative, default=0.0, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if self.shape == "constant" and (self.total_steps is not None or self.final):
            raise ConfigError(
                "a constant schedule has no end: total_steps and final have no effect",
                'Leave them out, or give shape="linear" or "cosine".',
            )
        if self.total_steps is not None and self.warmup_steps >= self.total_steps:
            raise ConfigError(
                f"warmup_steps is {self.warmup_steps}, and the run has {self.total_steps} steps",
                "Give fewer warmup_steps than total_steps.",
            )

    def over(self, total_steps: int) -> Schedule:
        """Return this schedule over so many steps, unless it states its own or has no end."""
        if self.shape == "constant" or self.total_steps is not None:
            return self
        return attrs.evolve(self, total_steps=total_steps)

    def __call__(self, step: int) -> float:
        """Return the rate of a step. ConfigError without `total_steps` if the shape needs them, and
        after the last step if `final` is 0.
        """
        if self.shape != "constant" and self.total_steps is None:
            raise ConfigError(
                f"a {self.shape} schedule needs the number of steps of the whole run",
                f'Give it: art.Schedule({self.peak:g}, "{self.shape}", total_steps=...).',
            )
        if step < self.warmup_steps:
            return self.peak * ((step + 1) / self.warmup_steps)
        if self.total_steps is None:
            return self.peak
        done = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        if done >= 1 and not self.final:
            raise ConfigError(
                f"the schedule ends after {self.total_steps} steps, and this is step {step + 1}",
                "Give more total_steps, or a final rate above 0 for the steps after them.",
            )
        left = max(1 - done, 0.0)
        if self.shape == "cosine":
            left = (1 - math.cos(math.pi * left)) / 2
        return self.final + (self.peak - self.final) * left


def rate_at(rate: Any, step: int, *, total_steps: int | None = None) -> float:
    """Return the learning rate of a step, counted from 0: a number as it is, a schedule's or a
    function's value there. `total_steps` are for a schedule that states none.

    Raises ConfigError if it is no finite number above 0.
    """
    scheduled = callable(rate)
    if isinstance(rate, Schedule) and total_steps is not None:
        rate = rate.over(total_steps)
    value = rate(step) if scheduled else rate
    number = None if isinstance(value, (str, bytes)) else number_or_none(value)
    if number is None or number <= 0:
        where = f" at step {step}" if scheduled else ""
        raise ConfigError(
            f"learning_rate must be a finite number above 0, got {value!r:.80}{where}",
            "Give a number, an art.Schedule, or a function that returns the rate of a step.",
        )
    return number


def options_at(options: Mapping[str, Any], step: int) -> dict[str, Any]:
    """Return the options of a training step with the learning rate of that step as a number."""
    if not callable(options.get("learning_rate")):
        return dict(options)
    return {**options, "learning_rate": rate_at(options["learning_rate"], step)}
