"""Doubles and faults: a sink that fails or hangs, a destination that is down, a sink thread."""

from __future__ import annotations

import itertools
import queue
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import attrs
import pytest

from art_core.log.history import MetricsRow
from art_core.sinks.protocol import RunInfo, Sink

_MAX_HANG_S = 30.0
_NETWORK = (socket.AF_INET, socket.AF_INET6)


@attrs.define
class FlakySink:
    """A sink in front of another one. Its first write fails or hangs, before or after the rows
    reached the other one.
    """

    sink: Sink
    before: BaseException | None = None
    after: BaseException | None = None
    released: threading.Event | None = None

    def open(self, run: RunInfo) -> None:
        """Open the sink behind."""
        self.sink.open(run)

    def write(self, rows: list[MetricsRow]) -> None:
        """Write to the sink behind; fail or hang the first time."""
        before, after, self.before, self.after = self.before, self.after, None, None
        if self.released is not None:
            self.released.wait(_MAX_HANG_S)
        if before is not None:
            raise before
        self.sink.write(rows)
        if after is not None:
            raise after

    def close(self, run: RunInfo) -> None:
        """Close the sink behind."""
        self.sink.close(run)


@contextmanager
def network_down() -> Iterator[None]:
    """In this process, no network connection can be made or used."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "send", "sendall"):
            patch.setattr(socket.socket, name, _refusing(getattr(socket.socket, name)))
        yield


@contextmanager
def disk_full_and_network_down() -> Iterator[None]:
    """In this process, no file can be written and no network connection can be made or used.

    Writing a file raises OSError, also through a handle that was open before.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with network_down():
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _refusing(method: Any) -> Any:
    def call(self: socket.socket, *arguments: Any) -> Any:
        if self.family in _NETWORK:
            raise ConnectionError("the network is down")
        return method(self, *arguments)

    return call


@attrs.define(eq=False)
class SinkThread:
    """Calls a sink's methods one after the other on one daemon thread.

    A call that takes longer than `seconds` fails the test. What the sink raises is raised here.
    """

    seconds: float
    _calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = attrs.field(
        factory=queue.SimpleQueue
    )
    _sink: Sink = attrs.field(init=False)

    @classmethod
    @contextmanager
    def running(cls, make_sink: Callable[[], Sink], seconds: float) -> Iterator[SinkThread]:
        """Make the sink on its thread, and end the thread with the block."""
        thread = cls(seconds)
        threading.Thread(target=thread._work, name="contract-sink", daemon=True).start()
        try:
            thread._sink = thread._call("make_sink", make_sink)
            yield thread
        finally:
            thread._calls.put(None)

    def open(self, run: RunInfo) -> None:
        """Open the sink."""
        self._call("open", lambda: self._sink.open(run))

    def write(self, rows: list[MetricsRow]) -> None:
        """Write rows to the sink."""
        self._call("write", lambda: self._sink.write(rows))

    def close(self, run: RunInfo) -> None:
        """Close the sink."""
        self._call("close", lambda: self._sink.close(run))

    def show(self) -> str:
        """Return the sink's repr."""
        return repr(self._sink)

    def texts(self) -> dict[str, str]:
        """Return the sink's attributes that are texts, by name."""
        slots = (getattr(base, "__slots__", ()) for base in type(self._sink).__mro__)
        names = {*itertools.chain.from_iterable(slots), *getattr(self._sink, "__dict__", {})}
        values = {name: getattr(self._sink, name, None) for name in sorted(names)}
        return {name: value for name, value in values.items() if isinstance(value, str)}

    def _call(self, name: str, function: Callable[[], Any]) -> Any:
        answer: Future[Any] = Future()
        self._calls.put((answer, function))
        try:
            return answer.result(self.seconds)
        except TimeoutError:
            if answer.done():
                raise
        return pytest.fail(f"{name} did not return within {self.seconds:g} s")

    def _work(self) -> None:
        while call := self._calls.get():
            answer, function = call
            try:
                answer.set_result(function())
            except BaseException as error:
                answer.set_exception(error)
