"""Keeps one server alive: watches it, and starts it again when it died or hangs, a few times."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import attrs

from art_core.base.errors import EngineError
from art_local.vllm.client import VllmClient
from art_local.vllm.metrics import StepGauges, read_page
from art_local.vllm.server import Server

log = logging.getLogger("art_local")
LOOK_EVERY_S = 1.0
LONG_LIFE_S = 600.0
REASON_WITHIN_S = 5.0
MOST_MISSES = 3


@attrs.frozen(kw_only=True)
class Patience:
    """How long each thing may take before it is given up, in seconds.

    - `start_s`: from the server's start to its first answer.
    - `load_s`: loading an adapter. `sleep_s`: giving memory back, or taking it again.
    - `answer_s`: no answer to a health check, before the server counts as hanging.
    - `stall_s`: requests run, and not one token is read or written.
    - `backoff_s`: before the first restart; twice as long before each further one.
    - `restarts`: in a row, before the engine ends for good; a server that lived for ten minutes
      starts a new row.
    """

    start_s: float = 600.0
    load_s: float = 120.0
    sleep_s: float = 120.0
    answer_s: float = 30.0
    stall_s: float = 180.0
    backoff_s: float = 1.0
    restarts: int = 3


class Supervisor:
    """Runs on the engine's event loop. `prepare` brings a new server to where the old one was."""

    def __init__(
        self,
        launch: Callable[[], Server],
        prepare: Callable[[VllmClient], Awaitable[None]],
        patience: Patience,
    ) -> None:
        self._launch, self._prepare, self.patience = launch, prepare, patience
        self._client: VllmClient | None = None
        self._reason = "it is starting"
        self._changed = asyncio.Event()
        self._failures = 0
        self._was_ready = False
        self._answered = self._moved = 0.0
        self._misses, self._progress = 0, -1.0
        self._condemned: str | None = None
        self.ended: EngineError | None = None
        self.restarts = 0
        self.requests = 0
        self.awake = asyncio.Event()
        self.awake.set()
        self.said = ""
        self.gauges = StepGauges()

    async def run(self) -> None:
        """Keep the server alive until cancelled, or until it failed too often."""
        while self.ended is None:
            began = time.monotonic()
            reason = await self._live()
            lived_long = time.monotonic() - began > LONG_LIFE_S
            self._failures = 1 if lived_long else self._failures + 1
            if not self._was_ready or self._failures > self.patience.restarts:
                self._end(reason)
                return
            wait_s = self.patience.backoff_s * 2 ** (self._failures - 1)
            log.warning("%s; starting it again in %g s", reason, wait_s)
            self.restarts += 1
            await asyncio.sleep(wait_s)
            await self.awake.wait()  # else the trainer has the device's memory

    async def client(self, timeout_s: float) -> VllmClient:
        """Return the client of a server that is ready, waiting for one that is starting.

        Raises EngineError when the engine has ended, or none is ready in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while self._client is None:
                    if self.ended is not None:
                        raise EngineError(*self.ended.args)
                    await self._changed.wait()
        except TimeoutError:
            raise EngineError(
                f"vLLM's server was not ready within {timeout_s:g} s: {self._reason}"
            ) from None
        return self._client

    async def why(self, client: VllmClient, error: EngineError) -> EngineError:
        """Return an error that says why a request to this client's server failed, if that comes
        out soon.
        """
        if self._client is client:
            with suppress(TimeoutError):
                async with asyncio.timeout(REASON_WITHIN_S):
                    await self._changed.wait()
        return error if self._client is client else EngineError(self._reason)

    def _hear(self, line: str) -> None:
        self.said = line

    def condemn(self, reason: str) -> None:
        """Have the server killed and started anew: it is not to be trusted any more."""
        self._condemned = reason

    async def _live(self) -> str:
        """One life of a server; returns why it is over."""
        self._condemned = None
        server: Server | None = None
        launching = asyncio.ensure_future(asyncio.to_thread(self._launch))
        try:
            server = await asyncio.shield(launching)
            await server.ready(self.patience.start_s, self._hear)
            await self._prepare(server.client)
            self._become(server.client, "")
            self._was_ready = True
            reason = await self._watch(server)
        except asyncio.CancelledError:
            self._become(None, "the engine is closed")
            server = server or await launching
            await server.stop()
            raise
        except Exception as error:
            known = isinstance(error, EngineError)
            reason = str(error) if known else f"{type(error).__name__}: {error}"
        told = f"vLLM's server failed: {reason}" + (f"; {server.log_end}" if server else "")
        self._become(None, told)
        if server is not None:
            await server.kill()
        return told

    async def _watch(self, server: Server) -> str:
        """Return why the server is to be given up, once it is."""
        self._answered = self._moved = time.monotonic()
        self._misses, self._progress = 0, -1.0
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            reason = server.ended or self._condemned
            reason = reason or await self._unanswered(server) or self._stalled()
            if reason:
                return reason

    async def look(self, client: VllmClient) -> None:
        """Read the server's figures; EngineError when it does not answer."""
        page = read_page(await client.metrics())
        now = time.monotonic()
        self.gauges.look(page, now - self._answered)
        self._answered = now

    async def _unanswered(self, server: Server) -> str | None:
        """Look at the server's health and figures; say what is wrong if it does not answer."""
        try:
            async with asyncio.timeout(self.patience.answer_s):
                await server.client.health()
                await self.look(server.client)
        except TimeoutError:
            return f"it did not answer within {self.patience.answer_s:g} s"
        except EngineError as error:
            self._misses += 1
            return str(error) if self._misses >= MOST_MISSES else None
        self._misses = 0
        return None

    def _stalled(self) -> str | None:
        """Say for how long requests ran without a token, if that is too long."""
        now, progress = time.monotonic(), self.gauges.progress
        if progress != self._progress or not self.requests or not self.awake.is_set():
            self._progress, self._moved = progress, now
        if now - self._moved <= self.patience.stall_s:
            return None
        return f"{self.requests} requests ran for {self.patience.stall_s:g} s without a token"

    def _become(self, client: VllmClient | None, reason: str) -> None:
        self._client, self._reason = client, reason
        self._changed.set()
        self._changed = asyncio.Event()

    def _end(self, reason: str) -> None:
        if self._was_ready:
            reason = f"{reason}. It failed {self._failures} times in a row and is not started again"
        self.ended = EngineError(reason)
        self._become(None, reason)
