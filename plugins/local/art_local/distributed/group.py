"""The ranks as their parent process sees them: started, asked, ended."""

from __future__ import annotations

import atexit
import json
import logging
import os
import pickle
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, Listener, wait
from pathlib import Path
from typing import Any, Protocol

import attrs

from art_core.base.errors import ArtError, BackendError, ConfigError
from art_local.distributed.rank import KEY, RankSettings

log = logging.getLogger("art_local")

START_TIMEOUT_S = 600.0
END_S = 5.0
DEATH_TIMEOUT_S = 20.0
"""How long ranks have to end by themselves, and then the agent to end them."""
APART_S = 10.0
"""Until all ranks report an error that one reported. Where one does not, they cannot go on."""
TAIL_LINES, TAIL_LETTERS = 12, 2000


Report = Callable[[int], None]


def ignored(_: int) -> None:
    """Do nothing with a report."""


class Group(Protocol):
    """Ranks that run operations of `Rank` together."""

    @property
    def dead(self) -> bool:
        """Whether the ranks have ended, so that a new group is needed."""

    def request(self, operation: str, *, report: Report = ignored, **values: Any) -> list[Any]:
        """Run an operation on all ranks; return their answers in the order of ranks. `report` is
        called with the tokens that rank 0 has computed, part by part.

        Raises the error that all of them raised, and BackendError, with the reason, when one died
        or failed while others did not; the group is dead then.
        """

    def end(self) -> None:
        """End the ranks; a second call does nothing."""


class LocalGroup:
    """Ranks on this machine, under torchrun's elastic agent (see `Group`).

    They end with this process, however it ends. Raises BackendError if they do not start.
    """

    def __init__(self, settings: RankSettings, start_timeout_s: float = START_TIMEOUT_S) -> None:
        self._ended = False
        self._count, self._owner = len(settings.devices), os.getpid()
        # short: the path of a socket has 108 letters at most
        self._directory = Path(tempfile.mkdtemp(prefix="art-ranks-"))
        self._connections: dict[int, Connection] = {}
        self.pids: dict[int, int] = {}
        key = secrets.token_bytes(32)
        self._listener = Listener(str(self._directory / "socket"), "AF_UNIX", authkey=key)
        self._agent = self._start_agent(key)
        atexit.register(self.end)
        try:
            self._accept(time.monotonic() + start_timeout_s)
            self._open(settings, start_timeout_s)
        except BaseException:
            self.end()
            raise

    @property
    def dead(self) -> bool:
        """Whether the ranks have ended. If one died between two requests, all are ended here, and
        the reason is logged.
        """
        if not self._ended and wait([*self._connections.values(), self._stdout], 0):
            log.warning("%s", self._lost())
        return self._ended

    @property
    def agent_pid(self) -> int:
        """The id of the agent's process."""
        return self._agent.pid

    def request(self, operation: str, *, report: Report = ignored, **values: Any) -> list[Any]:
        """Run an operation on all ranks; return their answers."""
        message = _pickled((operation, values))
        if self._ended:
            raise BackendError("the ranks have ended", "Train again: new ones are started.")
        with suppress(OSError):  # a rank that has died is found below
            for rank in sorted(self._connections):
                self._connections[rank].send_bytes(message)
        return self._answers(None, report)

    def end(self) -> None:
        """Close the connections, wait until the ranks have ended, and kill those that do not."""
        if os.getpid() != self._owner:
            return
        atexit.unregister(self.end)
        self._ended = True
        for connection in self._connections.values():
            connection.close()
        self._listener.close()
        self._end_agent()
        if self._agent.stdout:
            self._agent.stdout.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _start_agent(self, key: bytes) -> subprocess.Popen[bytes]:
        here = {KEY: key.hex(), "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
        if sys.platform != "linux":
            here["GLOO_SOCKET_IFNAME"] = "lo0"
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "art_local.distributed.agent",
             str(self._directory), str(self._count), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env={"OMP_NUM_THREADS": "1", **os.environ, **here},
            # Ctrl-C goes to this process only, which then ends the ranks
            process_group=0,
        )  # fmt: skip

    def _accept(self, deadline: float) -> None:
        """Wait for the ranks' connections."""
        arrived = threading.Condition()

        def accept() -> None:
            with suppress(OSError, EOFError):
                while len(self._connections) < self._count:
                    connection = self._listener.accept()
                    rank, pid = connection.recv()
                    with arrived:
                        self._connections[rank], self.pids[rank] = connection, pid
                        arrived.notify()

        threading.Thread(target=accept, name="art-ranks-accept", daemon=True).start()
        with arrived:
            while len(self._connections) < self._count:
                if self._agent.poll() is not None:
                    raise self._lost()
                if time.monotonic() > deadline:
                    raise BackendError("the ranks did not start in time", "Look at the log.")
                arrived.wait(0.2)

    def _open(self, settings: RankSettings, timeout: float) -> None:
        store = f"file://{self._directory / 'store'}"
        for connection in self._connections.values():
            connection.send([entry for entry in sys.path if entry])
            connection.send(attrs.evolve(settings, init_method=store))
        self._answers(timeout)

    def _answers(self, timeout: float | None, report: Report = ignored) -> list[Any]:
        """Return the answers of all ranks to one request."""
        answers: dict[int, Mapping[str, Any]] = {}
        deadline = None if timeout is None else time.monotonic() + timeout
        while len(answers) < self._count:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            waiting: dict[Any, int] = {
                c: r for r, c in self._connections.items() if r not in answers
            }
            ready = wait([*waiting, self._stdout], left)
            if not ready:
                break
            for each in ready:
                message = _received(each)
                if message is None:
                    raise self._lost()
                if "tokens" in message:
                    report(message["tokens"])
                    continue
                answers[waiting[each]] = message
                if "error" in message:
                    deadline = deadline or time.monotonic() + APART_S
        return self._checked(answers)

    def _checked(self, answers: Mapping[int, Mapping[str, Any]]) -> list[Any]:
        """Return the answers if no rank has an error. Where only some have one, or there is no
        answer, the ranks are not at the same place any more, and are ended.
        """
        failed = {rank: each["error"] for rank, each in answers.items() if "error" in each}
        if len(answers) == self._count and not failed:
            return [answers[rank]["answer"] for rank in sorted(answers)]
        if len(failed) < self._count:
            self.end()
        if not failed:
            raise BackendError("the ranks did not answer in time", "Train again.")
        rank = min(failed)
        if isinstance(failed[rank], ArtError):
            raise failed[rank]
        raise BackendError(
            f"rank {rank} of {self._count} failed: {type(failed[rank]).__name__}: {failed[rank]}"
        ) from failed[rank]

    @property
    def _stdout(self) -> Any:
        return self._agent.stdout

    def _lost(self) -> BackendError:
        """Return the error of a rank that died, once all others have ended."""
        for connection in self._connections.values():
            connection.close()
        self._end_agent()
        line = self._agent.stdout.read() if self._agent.stdout else b""
        reason, tail = "ended", self._tail(None)
        if line.strip():
            failure = json.loads(line.splitlines()[-1])
            rank = failure["rank"]
            reason = f"rank {rank} of {self._count} ended {_exit_text(failure['exit'])}"
            tail = self._tail(rank)
        else:
            reason = f"the agent of {self._count} ranks ended {_exit_text(self._agent.returncode)}"
        self.end()
        output = f"; the last lines of its stderr:\n{tail}" if tail else ""
        return BackendError(
            f"{reason}{output}",
            "The weights stay as they were. The next step starts new ranks, which continue from "
            "the last step.",
        )

    def _tail(self, rank: int | None) -> str:
        name = "*" if rank is None else str(rank)
        for file in sorted(self._directory.glob(f"logs/*/attempt_0/{name}/stderr.log")):
            lines = file.read_text(errors="replace").strip().splitlines()
            if lines:
                return "\n".join(lines[-TAIL_LINES:])[-TAIL_LETTERS:]
        return ""

    def _end_agent(self) -> None:
        """Wait for the agent and the ranks, end them, and at last kill them."""
        for ask, timeout in ((_nothing, END_S), (self._agent.terminate, DEATH_TIMEOUT_S)):
            ask()
            with suppress(subprocess.TimeoutExpired):
                self._agent.wait(timeout)
                return
        self._agent.kill()  # ranks end when it has ended
        self._agent.wait()


def _nothing() -> None:
    """Ask nothing."""


def _pickled(message: Any) -> bytes:
    try:
        return pickle.dumps(message)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"the step cannot be sent to the ranks: {error}",
            'A loss function must be importable: name it "module:function".',
        ) from error


def _received(connection: Any) -> Any:
    """Return a message; None if a rank or the agent has ended."""
    if not isinstance(connection, Connection):
        return None
    try:
        return connection.recv()
    except (EOFError, OSError):
        return None


def _exit_text(code: int) -> str:
    if code >= 0:
        return f"with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "a signal"
    hint = ", as when memory runs out" if name == "SIGKILL" else ""
    return f"with exit code {code} ({name}{hint})"
