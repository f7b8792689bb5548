"""The open runs of this process. At the end of the program they are closed, with its status.

Runs are closed before Python ends its threads: after that, sinks can't use pools of threads, nor
import libraries that start one.
"""

from __future__ import annotations

import asyncio
import atexit
import builtins
import dis
import functools
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn, Protocol

import attrs

from art_core.base.errors import BudgetError, StoppedError

log = logging.getLogger("art_core")

CLOSE_SECONDS = 10.0
OUT_OF_BUDGET = "out of budget"
TERMINATED = 128 + signal.SIGTERM
_THREAD_POOL, _PROCESS_POOL = (
    str(Path("concurrent", "futures", name)) for name in ("thread.py", "process.py")
)

Exit = Callable[..., NoReturn]
ExceptHook = Callable[[type[BaseException], BaseException, TracebackType | None], Any]


class OpenRun(Protocol):
    """A run, as the end of the program uses it."""

    @property
    def name(self) -> str:
        """`<project>/<model>`."""

    @property
    def last_step(self) -> int:
        """Step of the last row."""

    def close_at_exit(self, status: str, timeout: float, error: BaseException | None) -> None:
        """Close the run; a second call does nothing."""


class Terminated(SystemExit):
    """SIGTERM arrived."""


def status_of(error: BaseException | None) -> str:
    """Return the status of a run that ends with an exception, or with None."""
    if isinstance(error, KeyboardInterrupt | asyncio.CancelledError | Terminated):
        return "interrupted"
    if isinstance(error, SystemExit):
        return "failed" if error.code else "finished"
    if isinstance(error, StoppedError):
        return error.status
    if isinstance(error, BudgetError) or isinstance(getattr(error, "__cause__", None), BudgetError):
        return OUT_OF_BUDGET
    return "finished" if error is None else "failed"


@attrs.define(eq=False)
class ProgramEnd:
    """The program's open `runs`, and how the program ends. `interrupted` has the last step of each
    run that was closed by an interruption.
    """

    pid: int | None = None
    runs: list[OpenRun] = attrs.field(factory=list)
    interrupted: dict[str, int] = attrs.field(factory=dict)
    main_frame: FrameType | None = None
    exit: SystemExit | None = None

    def watch(self) -> None:
        """Begin to watch for the end of this process, if not begun yet."""
        if self.pid != os.getpid():
            self._begin(first=self.pid is None)

    def opened(self, run: OpenRun) -> None:
        """Add a run, to close it when the program ends."""
        self.watch()
        self.interrupted.pop(run.name, None)
        self.runs.append(run)

    def closed(self, run: OpenRun, status: str) -> None:
        """Remove a run that was closed."""
        if run in self.runs:
            self.runs.remove(run)
        if status == "interrupted":
            self.interrupted[run.name] = run.last_step

    def ending(self) -> BaseException | None:
        """Return the exception that ends the program; None when it ends normally."""
        frame = self.main_frame
        if frame is None or hasattr(sys, "ps1"):
            return None  # an interactive session; an earlier error did not end it
        if dis.opname[frame.f_code.co_code[frame.f_lasti]].startswith("RETURN"):
            return None
        last = getattr(sys, "last_value", None)
        trace = getattr(last, "__traceback__", None)
        return last if trace is not None and trace.tb_frame is frame else self.exit

    def before_shutdown(self) -> None:
        """Close the runs when no thread can log rows any more. Runs stay open if threads still run
        after `CLOSE_SECONDS`.
        """
        if self.pid != os.getpid() or not self.runs:
            return
        deadline = time.monotonic() + CLOSE_SECONDS
        with suppress(KeyboardInterrupt):
            while others_work() and time.monotonic() < deadline:
                time.sleep(0.02)
        if not others_work():
            self.close()

    def close(self) -> None:
        """Close the runs within `CLOSE_SECONDS` together; a second Ctrl-C ends the waiting."""
        if self.pid != os.getpid():
            return  # a forked process: the runs belong to its parent
        deadline = time.monotonic() + CLOSE_SECONDS
        error = self.ending()
        for run in list(self.runs):
            try:
                run.close_at_exit(status_of(error), max(0.0, deadline - time.monotonic()), error)
            except KeyboardInterrupt:
                deadline = 0.0
            except Exception as failure:
                log.warning("%s could not be closed: %s", run.name, failure)
        self.main_frame = None  # it refers to the program's variables

    def terminate(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """End the program on SIGTERM as Ctrl-C does; a second signal ends it at once."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self.pid != os.getpid():
            os.kill(os.getpid(), signal.SIGTERM)
            return
        self.exit = Terminated(TERMINATED)
        raise self.exit

    def noting_exit(self, exit_: Exit, place: int = 0) -> Exit:
        """Wrap `sys.exit` to note its status, the argument at a place."""

        @functools.wraps(exit_, assigned=())
        def noting(*given: Any, **named: Any) -> NoReturn:
            if threading.current_thread() is threading.main_thread():
                self.exit = SystemExit(*given[place:], *named.values())
            exit_(*given, **named)

        return noting

    def brief(self, hook: ExceptHook) -> ExceptHook:
        """Return an excepthook that prints one line per run for Ctrl-C, instead of a traceback."""

        @functools.wraps(hook, assigned=())
        def brief(
            kind: type[BaseException], error: BaseException, trace: TracebackType | None
        ) -> None:
            steps = self.interrupted | {run.name: run.last_step for run in self.runs}
            if not steps or not issubclass(kind, KeyboardInterrupt):
                hook(kind, error, trace)
                return
            for name, step in steps.items():
                line = f"interrupted: {name} is kept at step {step}; start again to resume"
                print(line, file=sys.stderr)  # noqa: T201

        return brief

    def _begin(self, *, first: bool) -> None:
        self.pid, self.main_frame, self.exit = os.getpid(), _outermost_frame(), None
        self.runs, self.interrupted = [], {}
        if first:
            sys.exit = self.noting_exit(sys.exit)
            if hasattr(builtins, "exit"):  # `exit(3)`; it is not there under `python -S`
                quitter: Any = type(builtins.exit)
                quitter.__call__ = self.noting_exit(quitter.__call__, place=1)
            sys.excepthook = self.brief(sys.excepthook)
            # There is no public hook that runs before threads are shut down.
            if shutdown := getattr(threading, "_shutdown", None):
                threading._shutdown = _first(self.before_shutdown, shutdown)  # type: ignore[attr-defined] # noqa: SLF001
            atexit.register(self.close)
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self.terminate)


program = ProgramEnd()


def others_work() -> bool:
    """Return whether a thread that Python waits for is busy, so that it may log rows."""
    frames = sys._current_frames()  # noqa: SLF001
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0)
        if thread.daemon or thread is threading.current_thread() or frame is None:
            continue
        if not _waits_in_pool(frame):
            return True
    return False


def _waits_in_pool(frame: FrameType) -> bool:
    """Return whether a thread is in a pool and waits for work, or manages processes."""
    if frame.f_code.co_filename.endswith(_THREAD_POOL):
        return True
    outer: FrameType | None = frame
    while outer is not None and not outer.f_code.co_filename.endswith(_PROCESS_POOL):
        outer = outer.f_back
    return outer is not None


def _first(before: Callable[[], None], then: Callable[[], None]) -> Callable[[], None]:
    @functools.wraps(then, assigned=())
    def both() -> None:
        before()
        then()

    return both


def _outermost_frame() -> FrameType | None:
    frame = sys._current_frames().get(threading.main_thread().ident or 0)  # noqa: SLF001
    while frame is not None and frame.f_back is not None:
        frame = frame.f_back
    return frame
