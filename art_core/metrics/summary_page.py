"""A run's log on one page, as values: the first, newest and best of each metric."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from art_core.metrics.taxonomy import Direction, Taxonomy


@attrs.define
class Entry:
    """A metric in a run: its first, newest and best value; NaN where the newest was not finite, or
    the first was not asked for.

    `best` is None for sums over the run and clocks, of which the best says nothing, and where it
    was not asked for.
    """

    better: Direction | None
    first: float
    last: float
    best: float | None = None
    best_step: int | None = None

    def take(self, value: float, step: int) -> None:
        """Keep a value if it is the best so far."""
        if self.better is None:
            return
        if self.best is None or (
            value > self.best if self.better == "higher" else value < self.best
        ):
            self.best, self.best_step = value, step


@attrs.define
class Summary:
    """What the first `offset` bytes of a log say.

    `earlier_step` is the highest step of the attempts before the newest one: a row at or below it
    repeats a step, and replaces what was said of it. `asked` names the metrics that the page is
    about, and whether their first and best are in it; None for all metrics.
    """

    offset: int = 0
    head: int = 0
    rows: int = 0
    skipped: int = 0
    attempt: int = 0
    step: int = -1
    highest_step: int = -1
    earlier_step: int = -1
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
