"""On a device that the trainer has too: the server's sleep, and the work that waits for its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from art_core.base.errors import EngineError
from art_local.vllm.client import VllmClient
from art_local.vllm.loop import within
from art_local.vllm.supervisor import Supervisor


class Rest:
    """Runs on the engine's event loop. `end_s` bounds how long work under way may take to end."""

    def __init__(self, supervisor: Supervisor, end_s: float) -> None:
        self._supervisor, self._patience, self._end_s = supervisor, supervisor.patience, end_s
        self._sleeper: VllmClient | None = None
        self._open, self._idle = asyncio.Event(), asyncio.Event()
        self._open.set()
        self._idle.set()
        self._under_way = 0

    @asynccontextmanager
    async def work(self) -> AsyncIterator[None]:
        """Wait until nothing rests, and keep the server awake inside the block."""
        await self._open.wait()
        self._under_way += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    async def begin(self) -> None:
        """Let work under way end and the server sleep; new work waits from now on.

        Raises EngineError when either takes too long; the server is then given up.
        """
        self._open.clear()
        try:
            await within(self._end_s, self._idle.wait(), "end its requests")
            self._sleeper = await self._supervisor.client(self._patience.start_s)
            self._supervisor.awake.clear()
            await within(self._patience.sleep_s, self._sleeper.sleep(), "fall asleep")
        except BaseException as error:
            self._supervisor.condemn(f"it did not fall asleep: {error}")
            self._supervisor.awake.set()
            self._open.set()
            raise

    async def end(self) -> None:
        """Wake the server up and let work begin; one that does not wake up is given up."""
        self._supervisor.awake.set()
        try:
            client = await self._supervisor.client(self._patience.start_s)
            if client is self._sleeper:  # else it died in its sleep, and another one is awake
                await within(self._patience.sleep_s, client.wake(), "wake up")
        except EngineError as error:
            # a server started anew is awake; if none comes up, publishing says so
            self._supervisor.condemn(f"it did not wake up: {error}")
        finally:
            self._sleeper = None
            self._open.set()
