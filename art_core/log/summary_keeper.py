"""Keeps the summary of a log that grows, so that a run that was killed has one too."""

from __future__ import annotations

import threading

import attrs

from art_core.log.history import HistoryLog
from art_core.log.summary import bring_up_to_date
from art_core.metrics.taxonomy import Taxonomy

AT_MOST = 64 << 20
"""Bytes without a summary beyond which making it is left to the leaderboard."""
WORTH_IT = 1 << 20
"""Bytes that a log grows by before its summary is made anew."""


@attrs.define(eq=False, repr=False)
class SummaryKeeper:
    """Makes a log's summary anew with each megabyte, one thread at a time, and at the end."""

    history: HistoryLog
    taxonomy: Taxonomy
    lock: threading.Lock = attrs.field(factory=threading.Lock)
    _size: int = 0
    _closed: bool = False

    def now_and_then(self) -> None:
        """Make it if the log has grown enough, no other thread does, and it is not closed."""
        if self.history.size - self._size < WORTH_IT:
            return
        if self.lock.acquire(blocking=False):
            try:
                if not self._closed:
                    self._size = self.history.size
                    self._make()
            finally:
                self.lock.release()

    def stop(self) -> None:
        """Make it no more."""
        self._closed = True

    def close(self) -> None:
        """Make it a last time."""
        self._closed = True
        with self.lock:
            self._make()

    def _make(self) -> None:
        bring_up_to_date(self.history.path, self.taxonomy, at_most=AT_MOST)
