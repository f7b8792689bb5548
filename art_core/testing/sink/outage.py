"""Trouble for a sink: one that fails or hangs in front of it, and a destination that is down."""

from __future__ import annotations

import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import pytest

from art_core.metrics.row import MetricsRow
from art_core.sinks.protocol import RunInfo, Sink

_LONGEST_HANG_S = 30.0
_NETWORK = (socket.AF_INET, socket.AF_INET6)


@attrs.define
class FlakySink:
    """A sink in front of another one. Its first write fails or hangs, before or after the rows
    reached the other one.
    """

    sink: Sink
    before: BaseException | None = None
    after: BaseException | None = None
    held: threading.Event | None = None

    def open(self, run: RunInfo) -> None:
        """Open the sink behind."""
        self.sink.open(run)

    def write(self, rows: list[MetricsRow]) -> None:
        """Write to the sink behind; fail or hang the first time."""
        before, after, self.before, self.after = self.before, self.after, None, None
        if self.held is not None:
            self.held.wait(_LONGEST_HANG_S)
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
