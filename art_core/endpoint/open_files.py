"""The system's limit of open files, which includes connections."""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from contextlib import suppress
from typing import Any

log = logging.getLogger("art_core")

WANTED, MACOS_MAX = 65536, 10240
FEW = 4096
"""A lower limit is reported."""
RESERVED = 128
"""Open files that are not connections: logs, devices, libraries."""

SILENCE_S = 60.0

_EXHAUSTED = (errno.EMFILE, errno.ENFILE)
_reported: set[int] = set()


def raise_open_files() -> int:
    """Raise this process's soft limit of open files to at most WANTED; return the limit.

    A limit that stays low is reported once. Without limits the result is WANTED.
    """
    try:
        import resource
    except ImportError:  # Windows
        return WANTED
    kind, unlimited = resource.RLIMIT_NOFILE, resource.RLIM_INFINITY
    soft, hard = resource.getrlimit(kind)
    highest = WANTED if hard == unlimited else min(WANTED, hard)
    for limit in (highest, MACOS_MAX):
        if soft != unlimited and soft < limit <= highest:
            with suppress(ValueError, OSError):  # macOS has a second, hidden limit
                resource.setrlimit(kind, (limit, hard))
                soft = limit
    limit = WANTED if soft == unlimited else soft
    if limit < FEW and limit not in _reported:
        _reported.add(limit)
        log.warning(
            "this process may have %d files open, and may not raise that limit. About %d requests "
            "can be under way at the same time, half as many of recorded agents; others wait or "
            "fail. Raise the hard limit (ulimit -Hn, docker --ulimit nofile=65536), or gather with "
            "max_concurrent=%d",
            limit,
            connections(limit),
            connections(limit) // 2,
        )
    return limit


def connections(limit: int) -> int:
    """Return the number of connections to this process itself that a limit allows. Each takes two
    files, one at either end.
    """
    return max(16, (limit - RESERVED) // 2)


class ExhaustionReport:
    """Reports the errors of an event loop, but a lack of open files only once a minute.

    asyncio reports it two thousand times a second, with a traceback, while a connection waits.
    """

    def __init__(self) -> None:
        self._silent_until = 0.0

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Handle an error of the loop; see `loop.set_exception_handler`."""
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in _EXHAUSTED:
            loop.default_exception_handler(context)
            return
        if time.monotonic() >= self._silent_until:
            self._silent_until = time.monotonic() + SILENCE_S
            log.warning(
                "connections wait, because this process may open no more files (%s). Gather with "
                "max_concurrent=..., or raise the limit",
                error,
            )
