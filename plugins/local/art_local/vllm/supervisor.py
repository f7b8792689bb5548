"""Keep one server running: watch it, and restart it, a limited number of times, if it fails."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import attrs

from art_core.base.errors import EngineError
from art_local.vllm.client import VllmClient
from art_local.vllm.metrics import StepMetrics, read_page
from art_local.vllm.server import Server

log = logging.getLogger("art_local")
POLL_S = 1.0
STABLE_AFTER_S = 600.0
EXIT_REASON_S = 5.0
MAX_MISSES = 3


@attrs.frozen(kw_only=True)
class Timeouts:
    """Limits in seconds (option `engine_timeouts`).

    - `start_s`: from the server's start to its first answer.
    - `load_s`: to load an adapter. `sleep_s`: to free device memory, or to allocate it again.
    - `answer_s`: to answer a health check.
    - `stall_s`: without one token read or written while requests run.
    - `backoff_s`: before the first restart; doubled before each further one.
    - `restarts`: number of consecutive restarts before the engine ends; a server that ran for ten
      minutes resets it.
    """

    start_s: float = 600.0
    load_s: float = 120.0
    sleep_s: float = 120.0
    answer_s: float = 30.0
    stall_s: float = 180.0
    backoff_s: float = 1.0
    restarts: int = 3


class Supervisor:
    """Runs on the engine's event loop. `prepare` gives a new server the state of the old one."""

    def __init__(
        self,
        launch: Callable[[], Server],
        prepare: Callable[[VllmClient], Awaitable[None]],
        timeouts: Timeouts,
    ) -> None:
        self._launch, self._prepare, self.timeouts = launch, prepare, timeouts
        self._client: VllmClient | None = None
        self._reason = "it is starting"
        self._changed = asyncio.Event()
        self._failures = 0
        self._was_ready = False
        self._answered = self._moved = 0.0
        self._misses, self._tokens = 0, -1.0
        self._condemned: str | None = None
        self.ended: EngineError | None = None
        self.restarts = 0
        self.requests = 0
        self.awake = asyncio.Event()
        self.awake.set()
        self.log_line = ""
        self.metrics = StepMetrics()

    async def run(self) -> None:
        """Keep the server running until cancelled, or until it has failed too often."""
        while self.ended is None:
            started = time.monotonic()
            reason = await self._run_once()
            stable = time.monotonic() - started > STABLE_AFTER_S
            self._failures = 1 if stable else self._failures + 1
            if not self._was_ready or self._failures > self.timeouts.restarts:
                self._end(reason)
                return
            wait_s = self.timeouts.backoff_s * 2 ** (self._failures - 1)
            log.warning("%s; restarting it in %g s", reason, wait_s)
            self.restarts += 1
            await asyncio.sleep(wait_s)
            await self.awake.wait()  # the trainer uses the device's memory until then

    async def client(self, timeout_s: float) -> VllmClient:
        """Wait until a server is ready and return its client.

        Raises EngineError if the engine has ended, or no server is ready in time.
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

    async def cause(self, client: VllmClient, error: EngineError) -> EngineError:
        """Return the reason of this client's server's failure as the error of a request, if it
        becomes known soon; else the given error.
        """
        if self._client is client:
            with suppress(TimeoutError):
                async with asyncio.timeout(EXIT_REASON_S):
                    await self._changed.wait()
        return error if self._client is client else EngineError(self._reason)

    def _set_log_line(self, line: str) -> None:
        self.log_line = line

    def condemn(self, reason: str) -> None:
        """Have the server killed and restarted, because it is in an unknown state."""
        self._condemned = reason

    async def _run_once(self) -> str:
        """Run one server until it ends; return the reason."""
        self._condemned = None
        server: Server | None = None
        launching = asyncio.ensure_future(asyncio.to_thread(self._launch))
        try:
            server = await asyncio.shield(launching)
            await server.ready(self.timeouts.start_s, self._set_log_line)
            await self._prepare(server.client)
            self._set(server.client, "")
            self._was_ready = True
            reason = await self._watch(server)
        except asyncio.CancelledError:
            self._set(None, "the engine is closed")
            server = server or await launching
            await server.stop()
            raise
        except Exception as error:
            known = isinstance(error, EngineError)
            reason = str(error) if known else f"{type(error).__name__}: {error}"
        failure = f"vLLM's server failed: {reason}"
        failure += f"; {server.crash_report}" if server else ""
        self._set(None, failure)
        if server is not None:
            await server.kill()
        return failure

    async def _watch(self, server: Server) -> str:
        """Return the reason to give the server up, once there is one."""
        self._answered = self._moved = time.monotonic()
        self._misses, self._tokens = 0, -1.0
        while True:
            await asyncio.sleep(POLL_S)
            reason = server.exit_reason or self._condemned
            reason = reason or await self._unanswered(server) or self._stalled()
            if reason:
                return reason

    async def sample(self, client: VllmClient) -> None:
        """Read the server's measurements; EngineError if it does not answer."""
        page = read_page(await client.metrics())
        now = time.monotonic()
        self.metrics.sample(page, now - self._answered)
        self._answered = now

    async def _unanswered(self, server: Server) -> str | None:
        """Check the server's health and read its measurements; return a problem if it fails."""
        try:
            async with asyncio.timeout(self.timeouts.answer_s):
                await server.client.health()
                await self.sample(server.client)
        except TimeoutError:
            return f"it did not answer within {self.timeouts.answer_s:g} s"
        except EngineError as error:
            self._misses += 1
            return str(error) if self._misses >= MAX_MISSES else None
        self._misses = 0
        return None

    def _stalled(self) -> str | None:
        """Return a problem if requests have run for too long without a token."""
        now, tokens = time.monotonic(), self.metrics.tokens
        if tokens != self._tokens or not self.requests or not self.awake.is_set():
            self._tokens, self._moved = tokens, now
        if now - self._moved <= self.timeouts.stall_s:
            return None
        return f"{self.requests} requests ran for {self.timeouts.stall_s:g} s without a token"

    def _set(self, client: VllmClient | None, reason: str) -> None:
        self._client, self._reason = client, reason
        self._changed.set()
        self._changed = asyncio.Event()

    def _end(self, reason: str) -> None:
        if self._was_ready:
            reason = f"{reason}. It failed {self._failures} times in a row and is not restarted"
        self.ended = EngineError(reason)
        self._set(None, reason)
