"""A run's log on one page, as values: the first, newest and best of each metric."""

from __future__ import annotations

import math
from collections.abc import Mapping

import attrs

from art_core.metrics.taxonomy import Direction, Taxonomy


class OutOfOrderError(Exception):
    """A row changes steps before the newest one: the log must be read as a whole."""


@attrs.define
class Entry:
    """A metric on the current line of a run: its values at the first and the furthest step, and the
    best one. NaN where the newest was not finite, or the first was not asked for.

    `settled` is the best value at the steps before `step`, the furthest: rows of that step may come
    yet.
    """

    better: Direction | None
    first: float
    last: float
    first_step: int = -1
    step: int = -1
    settled: float | None = None
    settled_step: int | None = None

    @property
    def best(self) -> float | None:
        """The best value. None for sums over the run and clocks, of which the best says nothing,
        and where it was not asked for.
        """
        return self.last if self._last_is_best else self.settled

    @property
    def best_step(self) -> int | None:
        """The step of the best value."""
        return self.step if self._last_is_best else self.settled_step

    @property
    def _last_is_best(self) -> bool:
        asked = self.better is not None and not math.isnan(self.first)
        return asked and self._is_better(self.last)

    def _is_better(self, value: float) -> bool:
        if self.settled is None:
            return not math.isnan(value)
        return value > self.settled if self.better == "higher" else value < self.settled

    def take(self, value: float, step: int) -> None:
        """Keep a value if it is the best so far."""
        if self.better is not None and self._is_better(value):
            self.settled, self.settled_step = value, step

    def add(self, value: float, step: int, *, sums: bool) -> None:
        """Take the value of a row: at a step that has one it is added if the metric `sums`, else
        it replaces that one.

        Raises OutOfOrderError for a step before the furthest one, and after a value that was not
        finite at the same step.
        """
        again = step == self.step
        if step < self.step or (again and math.isnan(self.last)):
            raise OutOfOrderError
        if not again:
            self.take(self.last, self.step)
        self.last = self.last + value if again and sums else value
        self.step = step
        if self.first_step == step:
            self.first = self.last

    def add_nonfinite(self, step: int) -> None:
        """Take note that the newest value was not finite; OutOfOrderError as in `add`."""
        if step < self.step:
            raise OutOfOrderError
        self.take(self.last, self.step)
        self.last, self.step = math.nan, step


@attrs.define
class Summary:
    """What the first `offset` bytes of a log say.

    `highest_step` is the furthest step of the current line, `earlier_step` the highest step before
    the newest attempt. `begun` says whether this one has trained. `asked` names the metrics that
    the page is about, and whether their first and best are in it; None for all metrics.
    """

    offset: int = 0
    head: int = 0
    rows: int = 0
    skipped: int = 0
    attempt: int = 0
    step: int = -1
    highest_step: int = -1
    earlier_step: int = -1
    begun: bool = False
    started: str = ""
    ended: str = ""
    asked: dict[str, bool] | None = None
    metrics: dict[str, Entry] = attrs.field(factory=dict)

    def answers(self, asked: Mapping[str, bool] | None) -> bool:
        """Tell whether the page is about all metrics that are asked for."""
        if self.asked is None:
            return True
        return asked is not None and all(
            self.asked.get(k, -1) >= whole for k, whole in asked.items()
        )


def better_values(key: str, taxonomy: Taxonomy) -> Direction | None:
    """Which values of a metric are better: as the catalogue says, else higher, as of rewards."""
    spec = taxonomy.spec(key)
    if spec.derived and ("/cum/" in key or spec.unit == "s"):
        return None
    return spec.direction or "higher"
