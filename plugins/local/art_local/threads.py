"""How torch's threads wait for each other on a CPU.

Each thread of ours that computes has helpers, threads of GNU's OpenMP library. Between two products
they spin, which is fastest while this process has the cores to itself, and slows every process when
it has not. How long they spin is read once (`torch_environment`). With more helpers than cores
they sleep at once: a thread that stops computing ends its own (`release_helpers`), and while
another process works, a second set makes all of them sleep (`CoreWatch`).
"""

from __future__ import annotations

import ctypes
import functools
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

WAIT_ASLEEP = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
"""The environment of a process whose threads always sleep."""
LOOK_S = 0.1
BUSY_SHARE, FREE_SHARE = 0.1, 0.03
"""A thread that waits for a core for more than `BUSY_SHARE` of its time competes with others; below
`FREE_SHARE` it does not.
"""
SCHEDSTAT = Path("/proc/thread-self/schedstat")
SOFT_PAUSE = 1


def release_helpers() -> None:
    """End the helpers of the calling thread; the next product starts new ones, in 0.1 ms."""
    pause = _pause()
    if pause is not None:
        pause(SOFT_PAUSE)


class CoreWatch:
    """Lets torch's threads spin while this process has the cores, and sleep while another works.

    `look` is called by the thread that computes, after each step. It measures how long that thread
    waited for a core. Where the system does not count this, nothing changes.
    """

    def __init__(self, schedstat: Path = SCHEDSTAT) -> None:
        self._schedstat = schedstat
        self._thread = 0
        self._next = 0.0
        self._before = (0, 0)
        self._freed: threading.Event | None = None

    @property
    def is_shared(self) -> bool:
        """Whether another process was seen on the cores."""
        return self._freed is not None

    def look(self) -> None:
        """Measure, and change how threads wait if another process began or ended to work."""
        now, thread = time.monotonic(), threading.get_ident()
        if now < self._next and thread == self._thread:
            return
        counted = _ran_and_waited(self._schedstat)
        if counted is None:
            return
        ran, waited = (new - old for new, old in zip(counted, self._before, strict=True))
        known = thread == self._thread
        self._thread, self._next, self._before = thread, now + LOOK_S, counted
        if not known or ran + waited <= 0:
            return
        share = waited / (ran + waited)
        if share > BUSY_SHARE and self._freed is None:
            self._freed = threading.Event()
            weakref.finalize(self, self._freed.set)
            threading.Thread(
                target=_hold_threads, args=(self._freed,), name="art-cores", daemon=True
            ).start()
        elif share < FREE_SHARE:
            self.close()

    def close(self) -> None:
        """Let threads spin again."""
        if self._freed is not None:
            self._freed.set()
            self._freed = None


def _hold_threads(freed: threading.Event) -> None:
    """Have a set of OpenMP threads, all asleep, until an event."""
    import torch

    torch.ones(1 << 18).add_(1)  # large enough for all threads
    freed.wait()
    release_helpers()


def _ran_and_waited(schedstat: Path) -> tuple[int, int] | None:
    """Return for how many nanoseconds the calling thread ran, and waited for a core."""
    try:
        ran, waited, _ = map(int, schedstat.read_text().split())
    except (OSError, ValueError):
        return None
    return ran, waited


@functools.cache
def _pause() -> Callable[[int], int] | None:
    """Return the function of the OpenMP library that torch brings (OpenMP 5.0, 3.2.44); None where
    it brings none.
    """
    import torch

    found = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    try:
        return ctypes.CDLL(str(found[0])).omp_pause_resource_all if found else None
    except (OSError, AttributeError):
        return None
