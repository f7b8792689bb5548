"""The worker process, and its messages: lines of JSON over a pair of sockets."""

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
STDERR_TAIL_S = 2.0
MAX_OUTPUT = 4000
"""Characters of the worker's last output that are kept, for the error of its end."""

OnMessage = Callable[[dict[str, Any]], None]


class Worker:
    """A process that runs Unsloth, torch and the models.

    `on_message` is called, in a thread, with each message that is not an answer. `exit_reason` is
    None while the process runs. It ends with this process, because its sockets are closed then.
    """

    def __init__(self, on_message: OnMessage) -> None:
        self.on_message = on_message
        self.exit_reason: str | None = None
        self._pending: dict[int, Future[Any]] = {}
        self._numbers = itertools.count()
        self._pending_lock, self._sending = threading.Lock(), threading.Lock()
        self._output = ""
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
                # It sees a pipe; the settings of progress bars are those of this process.
                env=os.environ | child_settings(),
                # Ctrl-C goes to this process only, which then closes the worker.
                process_group=0,
            )
        # Before the interpreter closes its threads' stderr.
        atexit.register(self.end)
        self._copying = self._thread(self._copy_output)
        self._listening = self._thread(self._listen)

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def request(self, operation: str, **values: Any) -> Future[Any]:
        """Request an operation; return a future of its answer, or of an ArtError."""
        future: Future[Any] = Future()
        number = next(self._numbers)
        with self._pending_lock:
            if self.exit_reason is not None:
                raise self.dead()
            self._pending[number] = future
        line = wire.encoded({"number": number, "operation": operation, "values": values})
        # If this fails, the listening thread fails the future, too.
        with self._sending, contextlib.suppress(OSError):
            self._socket.sendall(line)
        return future

    def dead(self) -> BackendError:
        """Return the error of a request to a dead worker."""
        return BackendError(
            f"the worker of backend 'unsloth' {self.exit_reason}",
            "Call await model.register(backend): a new worker continues from the last whole "
            "checkpoint.",
        )

    def end(self, timeout: float = END_TIMEOUT_S) -> None:
        """Disconnect and wait until the process has ended; kill it after `timeout`.

        In a forked child this does nothing: the worker belongs to the parent.
        """
        if os.getpid() != self._owner:
            return
        atexit.unregister(self.end)
        self._disconnect()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for thread in (self._listening, self._copying):
            if thread is not threading.current_thread():
                thread.join(timeout)
        self._socket.close()

    def _disconnect(self) -> None:
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
            log.debug("the worker's last line was cut off (%s)", error)
        finally:
            self._ended()

    def _arrived(self, message: dict[str, Any]) -> None:
        number = message.get("number")
        if number is None:
            self.on_message(message)
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
        self._copying.join(STDERR_TAIL_S)
        output = self._output.strip()
        with self._pending_lock:
            last_output = f"; its last output:\n{output}\n" if output else ""
            self.exit_reason = f"ended {_exit_text(code)}{last_output}"
            pending, self._pending = self._pending, {}
        for future in pending.values():
            if future.set_running_or_notify_cancel():
                future.set_exception(self.dead())

    def _copy_output(self) -> None:
        """Copy the worker's output to this process's stderr: progress bars and warnings."""
        assert self._process.stdout is not None
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        bars, rest = draws_bars(), ""
        with self._process.stdout as pipe:
            while data := os.read(pipe.fileno(), 1 << 16):
                text = decoder.decode(data)
                self._output = (self._output + text)[-MAX_OUTPUT:]
                if not bars:  # stderr is a log: write whole lines
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


def _exit_text(code: int) -> str:
    if code >= 0:
        return f"with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "a signal"
    hint = ", as when memory runs out" if name == "SIGKILL" else ""
    return f"with exit code {code} ({name}{hint})"
