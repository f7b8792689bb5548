"""A sink on a thread of its own, as the core runs it, with a time limit for each call."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import attrs
import pytest

from art_core.metrics.row import MetricsRow
from art_core.sinks.protocol import RunInfo, Sink


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
        made = cls(seconds)
        threading.Thread(target=made._work, name="contract-sink", daemon=True).start()
        try:
            made._sink = made._call("make_sink", make_sink)
            yield made
        finally:
            made._calls.put(None)

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
