"""A lock on the device, so that the engine's steps and the trainer's steps alternate.

    lock = DeviceLock()
    with lock.hold("training step"):
        ...

Waiters get it in the order of arrival, so neither side can starve the other: the trainer waits for
at most one engine step (a prefill or one token of the batch), the engine for what the trainer does
inside one `hold`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from art_core.base.errors import BackendError
from art_local.threads import CoreWatch, release_helpers


class DeviceLock:
    """A fair lock that knows the purpose of its holder. Not reentrant: taking it twice in one
    thread raises BackendError.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._queue: deque[object] = deque()
        self._holder: str | None = None
        self._thread: int | None = None
        self._cores = CoreWatch()

    @property
    def holder(self) -> str | None:
        """The purpose given to `hold` by the current holder; None while the device is free."""
        return self._holder

    @contextmanager
    def hold(self, purpose: str, timeout_s: float | None = None) -> Iterator[None]:
        """Hold the device inside the block, after all earlier waiters.

        Raises BackendError, which names the holder, if the device is not free within `timeout_s`
        (None: no limit).
        """
        self._acquire(purpose, timeout_s)
        try:
            yield
        finally:
            self._cores.look()
            if self._queue:
                release_helpers()
            with self._changed:
                self._holder = self._thread = None
                self._changed.notify_all()

    def _acquire(self, purpose: str, timeout_s: float | None) -> None:
        ticket, thread = object(), threading.get_ident()
        with self._changed:
            if self._thread == thread:
                raise BackendError(
                    f"{purpose!r} asked for the device inside {self._holder!r} of the same thread"
                )
            self._queue.append(ticket)
            try:
                acquired = self._changed.wait_for(
                    lambda: self._holder is None and self._queue[0] is ticket, timeout_s
                )
                if not acquired:
                    raise BackendError(
                        f"{purpose!r} did not get the device within {timeout_s} s; "
                        f"{self._holder!r} has it"
                    )
                self._holder, self._thread = purpose, thread
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()
