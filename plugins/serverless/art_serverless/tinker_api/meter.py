"""Seconds of the device, by whose work used it."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class DeviceMeter:
    """Counts the time in which there is work, each second once: work of several owners at the same
    time shares it equally. Safe under threads.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._since = clock, clock()
        self._running: Counter[str] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    @contextmanager
    def using(self, owner: str) -> Iterator[None]:
        """Count the time inside the block for an owner."""
        with self._lock:
            self._count()
            self._running[owner] += 1
        try:
            yield
        finally:
            with self._lock:
                self._count()
                self._running[owner] -= 1
                self._running = +self._running

    def take(self, owner: str) -> float:
        """Return the seconds of an owner since the last call."""
        with self._lock:
            self._count()
            return self._seconds.pop(owner, 0.0)

    def peek(self, owner: str) -> float:
        """Return the seconds that `take` would return now."""
        with self._lock:
            self._count()
            return self._seconds.get(owner, 0.0)

    def _count(self) -> None:
        now = self._clock()
        for owner in self._running:
            self._seconds[owner] += (now - self._since) / len(self._running)
        self._since = now
