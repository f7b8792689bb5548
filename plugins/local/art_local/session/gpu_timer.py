"""For how long a backend has held its devices."""

from __future__ import annotations

import threading
import time


class Clock:
    """Seconds that the devices were held and not charged yet, each charged to one model only."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Count from now on; a clock that runs goes on."""
        with self._lock:
            if self._since is None:
                self._since = time.monotonic()

    def take(self) -> float:
        """Return the seconds since the start or the last call; 0 when nothing is held."""
        with self._lock:
            if self._since is None:
                return 0.0
            now = time.monotonic()
            seconds, self._since = now - self._since, now
            return seconds

    def stop(self) -> None:
        """Count no longer: nothing is held."""
        with self._lock:
            self._since = None
