"""Turns at the device: the engine's steps and the trainer's steps come one after the other, first
come first served.

    turns = DeviceTurns()
    with turns.take("training step"):
        ...

A waiter is served in the order of arrival, so neither side can starve the other: the trainer waits
for at most one engine step (a prefill or one token of the batch), the engine for what the trainer
does inside one `take`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from art_core.base.errors import BackendError


class DeviceTurns:
    """A fair lock with a name for who holds it. Not reentrant: taking it twice in one thread raises
    BackendError.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._queue: deque[object] = deque()
        self._holder: str | None = None
        self._thread: int | None = None

    @property
    def holder(self) -> str | None:
        """Who has the device now, in the words given to `take`; None while it is free."""
        return self._holder

    @contextmanager
    def take(self, who: str, timeout_s: float | None = None) -> Iterator[None]:
        """Hold the device inside the block, after everyone who asked before.

        Raises BackendError when the turn did not come within `timeout_s` (None waits for ever),
        naming the holder.
        """
        self._acquire(who, timeout_s)
        try:
            yield
        finally:
            with self._changed:
                self._holder = self._thread = None
                self._changed.notify_all()

    def _acquire(self, who: str, timeout_s: float | None) -> None:
        ticket, me = object(), threading.get_ident()
        with self._changed:
            if self._thread == me:
                raise BackendError(
                    f"{who!r} asked for the device inside {self._holder!r} of the same thread"
                )
            self._queue.append(ticket)
            try:
                mine = self._changed.wait_for(
                    lambda: self._holder is None and self._queue[0] is ticket, timeout_s
                )
                if not mine:
                    raise BackendError(
                        f"{who!r} did not get the device within {timeout_s} s; "
                        f"{self._holder!r} has it"
                    )
                self._holder, self._thread = who, me
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()
