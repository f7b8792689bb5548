"""Beside the second stop: threads for agents that are no coroutines.

`asyncio.to_thread` runs in the event loop's default pool, of four threads more than there are
cores. An agent spends its time waiting for answers, so the fifth agent of a core would wait for a
thread instead, and its `timeout` would run meanwhile.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from weakref import WeakSet

MAX_THREADS = 1024
"""Threads are started only when no other one is idle."""

_ASYNCIOS_OWN = "asyncio"
_widened: WeakSet[asyncio.AbstractEventLoop] = WeakSet()


def widen_thread_pool() -> None:
    """Give the running event loop a default pool of MAX_THREADS threads, once, unless the program
    has set a pool of its own.
    """
    loop = asyncio.get_running_loop()
    if loop in _widened:
        return
    _widened.add(loop)
    # An event loop has no public way to return its pool; asyncio's own one has this prefix.
    pool: Any = getattr(loop, "_default_executor", None)
    if pool is None or getattr(pool, "_thread_name_prefix", "") == _ASYNCIOS_OWN:
        loop.set_default_executor(ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="art-agent"))
