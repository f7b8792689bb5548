"""The time of devices in use, each second charged once."""

from __future__ import annotations

import threading
import time


class GpuTimer:
    """Seconds of device use that are not charged yet. Each second is charged to one model only."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start counting; a running timer continues."""
        with self._lock:
            if self._since is None:
                self._since = time.monotonic()

    def take(self) -> float:
        """Return the seconds since the start or the last call; 0 if the timer is stopped."""
        with self._lock:
            if self._since is None:
                return 0.0
            now = time.monotonic()
            seconds, self._since = now - self._since, now
            return seconds

    def stop(self) -> None:
        """Stop counting: no device is in use."""
        with self._lock:
            self._since = None
