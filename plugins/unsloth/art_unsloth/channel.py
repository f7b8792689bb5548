"""The worker process and the way to it: lines of JSON over a pair of sockets."""

from __future__ import annotations

import atexit
import codecs
import contextlib
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from art_core import BackendError
from art_core.base.files import close_socket_in_children
from art_core.base.progress import child_settings, draws_bars, final_lines
from art_unsloth import wire

log = logging.getLogger("art_unsloth")
END_TIMEOUT_S = 30.0
LAST_WORDS_S = 2.0
TOLD_CHARACTERS = 4000
"""How much of what the worker wrote last is kept, for the day that it dies."""

News = Callable[[dict[str, Any]], None]


class Worker:
    """A process of its own that holds Unsloth, torch and the models.

    `news` is called, in a thread, with each message that answers no request. `death` says why the
    process is not there any more; None while it is. It ends when this process does, however that
    ends: its end of the sockets is then closed.
    """

    def __init__(self, news: News) -> None:
        self.news = news
        self.death: str | None = None
        self._pending: dict[int, Future[Any]] = {}
        self._numbers = itertools.count()
        self._pending_lock, self._sending = threading.Lock(), threading.Lock()
        self._told = ""
        self._owner = os.getpid()
        self._socket, theirs = socket.socketpair()
        close_socket_in_children(self._socket)  # a copy would keep the worker alive
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "art_unsloth.worker",
                    str(theirs.fileno()),
                    str(os.getpid()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                # it sees a pipe, and does not know who reads what is copied from it
                env=os.environ | child_settings(),
                # Ctrl-C is for this process, which then closes the worker in order
                process_group=0,
            )
        # before the interpreter takes its threads' stderr away
        atexit.register(self.end)
        self._telling = self._thread(self._tell)
        self._listening = self._thread(self._listen)

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def request(self, operation: str, **values: Any) -> Future[Any]:
        """Ask for an operation; the answer, or an ArtError, comes through the future."""
        future: Future[Any] = Future()
        number = next(self._numbers)
        with self._pending_lock:
            if self.death is not None:
                raise self.lost()
            self._pending[number] = future
        line = wire.encoded({"number": number, "operation": operation, "values": values})
        # the listening thread sees the same end and fails the future
        with self._sending, contextlib.suppress(OSError):
            self._socket.sendall(line)
        return future

    def lost(self) -> BackendError:
        """Return the error of a request that nobody answers any more."""
        return BackendError(
            f"the worker of backend 'unsloth' {self.death}",
            "Call await model.register(backend): a new worker goes on from the last whole "
            "checkpoint.",
        )

    def end(self, timeout: float = END_TIMEOUT_S) -> None:
        """Hang up, and wait until the process has ended; one that does not is killed. In a forked
        child nothing happens: the worker is the parent's.
        """
        if os.getpid() != self._owner:
            return
        atexit.unregister(self.end)
        self._hang_up()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for thread in (self._listening, self._telling):
            if thread is not threading.current_thread():
                thread.join(timeout)
        self._socket.close()

    def _hang_up(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    def _thread(self, work: Callable[[], None]) -> threading.Thread:
        name = f"art-unsloth{work.__name__}"
        thread = threading.Thread(target=work, name=name, daemon=True)
        thread.start()
        return thread

    def _listen(self) -> None:
        try:
            with self._socket.makefile("rb") as lines:
                for line in lines:
                    self._arrived(wire.decoded(line))
        except (OSError, ValueError) as error:
            log.debug("the worker's last line was cut off (%s); its end follows", error)
        finally:
            self._ended()

    def _arrived(self, message: dict[str, Any]) -> None:
        number = message.get("number")
        if number is None:
            self.news(message)
            return
        with self._pending_lock:
            future = self._pending.pop(number)
        if not future.set_running_or_notify_cancel():
            return
        if "error" in message:
            future.set_exception(wire.error_of(message["error"]))
        else:
            future.set_result(message["answer"])

    def _ended(self) -> None:
        try:
            code = self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._telling.join(LAST_WORDS_S)
        said = self._told.strip()
        with self._pending_lock:
            self.death = f"ended {_how(code)}" + (f"; it said last:\n{said}\n" if said else "")
            pending, self._pending = self._pending, {}
        for future in pending.values():
            if future.set_running_or_notify_cancel():
                future.set_exception(self.lost())

    def _tell(self) -> None:
        """Write what the worker writes to this process's stderr: progress bars and warnings."""
        assert self._process.stdout is not None
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        bars, rest = draws_bars(), ""
        with self._process.stdout as pipe:
            while data := os.read(pipe.fileno(), 1 << 16):
                text = decoder.decode(data)
                self._told = (self._told + text)[-TOLD_CHARACTERS:]
                if not bars:  # a log: its lines stay whole
                    text, rest = final_lines(rest + text)
                _show(text)
        if rest:
            _show(final_lines(f"{rest}\n")[0])


def _show(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (AttributeError, OSError, ValueError):
        return  # no stderr, or one that is closed


def _how(code: int) -> str:
    if code >= 0:
        return f"with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "a signal"
    hint = ", as it does when memory runs out" if name == "SIGKILL" else ""
    return f"with exit code {code} ({name}{hint})"
