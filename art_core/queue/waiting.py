"""Waiting for changes in any event loop, and the terms of leases by the monotonic clock."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

import attrs


@attrs.define(eq=False)
class Changes:
    """Wakes those that wait for a change. Safe under threads."""

    _waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = attrs.field(
        factory=list, init=False
    )
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)

    def notify(self) -> None:
        """Set the event of each `watched` block."""
        with self._lock:
            for loop, changed in self._waiting:
                with suppress(RuntimeError):  # the event loop of who waited is closed
                    loop.call_soon_threadsafe(changed.set)

    @contextmanager
    def watched(self) -> Iterator[asyncio.Event]:
        """Return an event that is set by each change while the block lasts."""
        waiting = asyncio.get_running_loop(), asyncio.Event()
        with self._lock:
            self._waiting.append(waiting)
        try:
            yield waiting[1]
        finally:
            with self._lock:
                self._waiting.remove(waiting)


async def within(changed: asyncio.Event, seconds: float) -> None:
    """Wait for an event, `seconds` at most."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await changed.wait()


@attrs.define(eq=False)
class Terms:
    """The ends of leases, by a clock of this process. A lease that another process has given or
    renewed has a whole term from when this one sees it. Safe under threads.
    """

    seconds: float
    clock: Callable[[], float]
    _ends: dict[tuple[int, int], float] = attrs.field(factory=dict, init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)

    def begin(self, number: int, renewed: int = 0) -> None:
        """Begin a term, of a lease that was given or renewed."""
        with self._lock:
            self._ends[number, renewed] = self.clock() + self.seconds

    def over(self, leases: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return those of the open leases whose term is over. A lease is an attempt's number and
        how often it was renewed.
        """
        with self._lock:
            now = self.clock()
            self._ends = {each: self._ends.get(each, now + self.seconds) for each in leases}
            return [each for each, end in self._ends.items() if end <= now]
