"""A server's process: started behind a guard, watched, ended by its id."""

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
from art_local.vllm.crash_report import log_end

GUARD = Path(__file__).with_name("parent_watchdog.py")
KILL_AFTER_S = 15.0


@attrs.define(eq=False)
class ServerProcess:
    """A running server: it dies with this process, and takes its own children along."""

    log_file: Path
    _guard: subprocess.Popen[bytes]
    group: int
    _log_begins: int = 0

    @classmethod
    def start(cls, command: Sequence[str], env: Mapping[str, str], log_file: Path) -> ServerProcess:
        """Start a command; its output is appended to the log file. EngineError when it can't."""
        log_file.parent.mkdir(parents=True, exist_ok=True)
        log_begins = log_file.stat().st_size if log_file.exists() else 0
        guarded = [sys.executable, "-S", "-E", str(GUARD), str(os.getpid()), str(log_file)]
        guard = subprocess.Popen(
            [*guarded, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(env),
            # Ctrl-C is for the trainer, which then ends its server in order
            start_new_session=True,
        )
        assert guard.stdout is not None and guard.stderr is not None
        line = guard.stdout.readline()
        guard.stdout.close()
        if not line.strip():
            complaint = guard.stderr.read().decode(errors="replace").strip().rpartition("\n")[2]
            guard.stderr.close()
            guard.wait()
            raise EngineError(f"{command[0]} could not be started: {complaint}")
        guard.stderr.close()
        return cls(log_file, guard, int(line), log_begins)

    @property
    def log_end(self) -> str:
        """What the end of its log tells, in one line."""
        return log_end(self.log_file, self._log_begins)

    @property
    def ended(self) -> str | None:
        """How the server ended, in words; None while it runs."""
        status = self._guard.poll()
        if status is None:
            return None
        return "its guard was killed" if status < 0 else f"it ended with status {status}"

    def stop(self) -> None:
        """End the server and all that it started; what does not end in time is killed."""
        self._guard.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._guard.wait(KILL_AFTER_S)
        self._end()

    def kill(self) -> None:
        """End the server and all that it started, at once."""
        self._kill_group()
        with suppress(subprocess.TimeoutExpired):
            self._guard.wait(KILL_AFTER_S)
        self._end()

    def _end(self) -> None:
        self._kill_group()
        self._guard.kill()
        self._guard.wait()

    def _kill_group(self) -> None:
        # A guard that came to an end of its own has left nothing behind: by now the group's id may
        # be another's.
        if self._guard.poll() is None or self._guard.returncode < 0:
            with suppress(ProcessLookupError):
                os.killpg(self.group, signal.SIGKILL)


def free_port() -> socket.socket:
    """Return a bound, silent socket: while it is open, no other server is given its port.

    The server itself can still bind it, since both allow sharing (SO_REUSEPORT).
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "SO_REUSEPORT"):
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind(("127.0.0.1", 0))
    return held
