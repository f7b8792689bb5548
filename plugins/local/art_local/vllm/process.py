"""A server's process, started by a watchdog that ends it with this process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import attrs

from art_core.base.errors import EngineError
from art_local.vllm.crash_report import crash_report

WATCHDOG = Path(__file__).with_name("parent_watchdog.py")
KILL_AFTER_S = 15.0


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
