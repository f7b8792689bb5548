"""Strategies of retention: which checkpoints a run keeps after each step."""

from __future__ import annotations

from collections.abc import Callable, Collection

import attrs

from art_core.base.errors import ConfigError
from art_core.run.checkpoints import Retention


@attrs.frozen
class StoredSteps:
    """The steps of a run that have a checkpoint, oldest first, and the run's metrics; given to a
    strategy, which returns the steps to keep.
    """

    steps: tuple[int, ...]
    _curves: Retention = attrs.field(repr=False)

    def values(self, metric: str) -> dict[int, float]:
        """Return a metric's values at these steps, where it was logged."""
        found = self._curves.values(metric)
        return {step: found[step] for step in self.steps if step in found}

    def best(self, metric: str, count: int = 1) -> list[int]:
        """Return so many of the steps, the best by a metric first, the latest of equals."""
        return self._curves.ranked(self.steps, metric)[:count]


KeepCheckpoints = Callable[[StoredSteps], Collection[int]]
"""A strategy: a function of what is stored that returns the steps to keep. The newest checkpoint,
and those in use, are kept in any case.
"""


def keep_all() -> KeepCheckpoints:
    """Keep every checkpoint."""
    return lambda stored: stored.steps


def keep_every(steps: int) -> KeepCheckpoints:
    """Keep the checkpoints of each `steps`-th step, and the newest."""
    _check("steps", steps, 1)
    return lambda stored: [step for step in stored.steps if step % steps == 0]


def keep_recent_and_top(
    recent: int = 3, top: int = 2, metric: str = "val/reward"
) -> KeepCheckpoints:
    """Keep the most recent checkpoints, and the top ones by a metric, in the metric's direction."""
    _check("recent", recent, 1)
    _check("top", top, 0)
    return lambda stored: {*stored.steps[-recent:], *stored.best(metric, top)}


def _check(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} must be a whole number from {least} on, got {value!r:.80}")
