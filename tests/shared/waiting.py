"""Waits until something is true. No test asserts how long that took: the machine may be busy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

LONGEST_S = 60.0  # a test that waits for so long has failed


def alive(pid: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(claim: Callable[[], object], within_s: float = LONGEST_S) -> None:
    """Wait until `claim()` is true; raises AssertionError when it does not become true."""
    deadline = time.monotonic() + within_s
    while not claim():
        if time.monotonic() > deadline:
            raise AssertionError(f"it did not become true within {within_s:g} s")
        time.sleep(0.002)


async def until_async(claim: Callable[[], object], within_s: float = LONGEST_S) -> None:
    """Do the same as `until` while the event loop goes on."""
    deadline = time.monotonic() + within_s
    while not claim():
        if time.monotonic() > deadline:
            raise AssertionError(f"it did not become true within {within_s:g} s")
        await asyncio.sleep(0.002)
