"""Ctrl-C while a pipeline runs: the first one ends it after the step, the second one at once."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger("art_core")


@contextmanager
def first_interruption(doing: str) -> Iterator[asyncio.Event]:
    """Give an event that the first Ctrl-C sets in the block. After it, and after the block, Ctrl-C
    does what it did before. In other threads than the main one, Ctrl-C is not looked at.
    """
    event = asyncio.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    loop, before = asyncio.get_running_loop(), signal.getsignal(signal.SIGINT)

    def interrupted() -> None:
        log.warning("interrupted: %s ends after this step; Ctrl-C again ends it now", doing)
        signal.signal(signal.SIGINT, before)
        event.set()

    loop.add_signal_handler(signal.SIGINT, interrupted)
    try:
        yield event
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, before)
