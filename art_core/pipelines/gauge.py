"""How much of something there was, over time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs


@attrs.define(eq=False)
class Gauge:
    """A level that changes: its sum over time, and the seconds in which it was above 0."""

    clock: Callable[[], float] = time.monotonic
    level: int = 0
    _since: float = attrs.field(init=False)
    _area: float = 0.0
    _seconds: float = 0.0

    def __attrs_post_init__(self) -> None:
        self._since = self.clock()

    def set(self, level: int) -> None:
        """Change the level."""
        now = self.clock()
        passed, self._since = now - self._since, now
        self._area += self.level * passed
        self._seconds += passed * (self.level > 0)
        self.level = level

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """Raise the level by one in the block."""
        self.set(self.level + 1)
        try:
            yield
        finally:
            self.set(self.level - 1)

    def take(self) -> tuple[float, float]:
        """Return the level's sum over time and the seconds above 0, and begin both again."""
        self.set(self.level)
        taken = self._area, self._seconds
        self._area = self._seconds = 0.0
        return taken
