"""The sleep of a vLLM server that shares the trainer's device."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from art_core.base.errors import EngineError
from art_local.vllm.client import VllmClient
from art_local.vllm.loop import within
from art_local.vllm.supervisor import Supervisor


class Sleep:
    """Runs on the engine's event loop. `drain_s` limits the wait for running work to end."""

    def __init__(self, supervisor: Supervisor, drain_s: float) -> None:
        self._supervisor, self._timeouts, self._drain_s = supervisor, supervisor.timeouts, drain_s
        self._sleeper: VllmClient | None = None
        self._open, self._idle = asyncio.Event(), asyncio.Event()
        self._open.set()
        self._idle.set()
        self._running = 0

    @asynccontextmanager
    async def awake(self) -> AsyncIterator[None]:
        """Wait until the server is awake, and keep it awake inside the block."""
        await self._open.wait()
        self._running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    async def start(self) -> None:
        """Wait for running work, then put the server to sleep; new work waits from now on.

        Raises EngineError if either takes too long; the server is then replaced.
        """
        self._open.clear()
        try:
            await within(self._drain_s, self._idle.wait(), "end its requests")
            self._sleeper = await self._supervisor.client(self._timeouts.start_s)
            self._supervisor.awake.clear()
            await within(self._timeouts.sleep_s, self._sleeper.sleep(), "fall asleep")
        except BaseException as error:
            self._supervisor.condemn(f"it did not fall asleep: {error}")
            self._supervisor.awake.set()
            self._open.set()
            raise

    async def end(self) -> None:
        """Wake the server up and let work start; a server that does not wake up is replaced."""
        self._supervisor.awake.set()
        try:
            client = await self._supervisor.client(self._timeouts.start_s)
            if client is self._sleeper:  # else it died asleep, and a new, awake one replaced it
                await within(self._timeouts.sleep_s, client.wake(), "wake up")
        except EngineError as error:
            # a new server is awake; if none comes up, publishing raises the error
            self._supervisor.condemn(f"it did not wake up: {error}")
        finally:
            self._sleeper = None
            self._open.set()
