"""The limit on open files, in a process with a limit of its own."""

from __future__ import annotations

import asyncio
import errno
import sys
from types import SimpleNamespace

import pytest

from art_core.endpoint import open_files
from art_core.endpoint.open_files import (
    WANTED,
    ExhaustionReport,
    connections,
    raise_open_files,
)

UNLIMITED = -1


class Limits:
    """A kernel: what `resource` shows, and the most that it lets a process have."""

    RLIMIT_NOFILE, RLIM_INFINITY = 7, UNLIMITED

    def __init__(self, soft: int, hard: int, most: int = 1 << 30) -> None:
        self.soft, self.hard, self.most = soft, hard, most

    def getrlimit(self, kind: int) -> tuple[int, int]:
        return self.soft, self.hard

    def setrlimit(self, kind: int, limits: tuple[int, int]) -> None:
        soft, hard = limits
        if soft > self.most:
            raise ValueError("not allowed to raise maximum limit")
        self.soft, self.hard = soft, hard


@pytest.fixture(autouse=True)
def _nothing_reported(monkeypatch) -> None:
    monkeypatch.setattr(open_files, "_reported", set())


@pytest.mark.parametrize(
    ("limits", "raised"),
    [
        (Limits(256, UNLIMITED), WANTED),
        (Limits(1024, 1 << 20), WANTED),
        (Limits(1024, 4096), 4096),
        (Limits(256, UNLIMITED, most=10240), 10240),
        (Limits(200_000, UNLIMITED), 200_000),
        (Limits(UNLIMITED, UNLIMITED), UNLIMITED),
    ],
)
def test_the_soft_limit_is_raised_as_far_as_it_may(limits, raised, monkeypatch, caplog) -> None:
    monkeypatch.setitem(sys.modules, "resource", limits)
    hard = limits.hard
    assert raise_open_files() == (WANTED if raised == UNLIMITED else raised)
    assert (limits.soft, limits.hard) == (raised, hard)
    assert not caplog.text


def test_a_hard_limit_that_is_too_low_is_reported_once(monkeypatch, caplog) -> None:
    monkeypatch.setitem(sys.modules, "resource", Limits(256, 512))
    assert raise_open_files() == raise_open_files() == 512
    (record,) = caplog.records
    assert "may have 512 files open" in record.message
    assert "About 192 requests" in record.message
    assert "max_concurrent=96" in record.message


def test_a_limit_that_nobody_may_raise_leaves_some_connections(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", Limits(100, 100, most=0))
    assert connections(raise_open_files()) == 16


def test_a_system_without_such_a_limit_is_left_alone(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    assert raise_open_files() == WANTED


def test_a_loop_reports_once_that_no_file_can_be_opened(caplog, monkeypatch) -> None:
    others = []
    loop = SimpleNamespace(default_exception_handler=others.append)
    report = ExhaustionReport()
    full = OSError(errno.EMFILE, "Too many open files")
    for _ in range(3):
        report(loop, {"message": "socket.accept() out of system resource", "exception": full})
    (record,) = caplog.records
    assert "may open no more files ([Errno 24] Too many open files)" in record.message
    monkeypatch.setattr("art_core.endpoint.open_files.SILENCE_S", 0.0)
    report._silent_until = 0.0
    report(loop, {"exception": full})
    report(loop, {"exception": full})
    assert len(caplog.records) == 3
    for context in ({"message": "a"}, {"exception": ValueError()}, {"exception": OSError(5, "")}):
        report(loop, context)
    assert len(others) == 3


async def test_the_loop_of_an_endpoint_reports_so(models, engine, ask, running) -> None:
    handlers = []

    class Looking(type(models)):
        async def resolve(self, name):
            handlers.append(asyncio.get_running_loop().get_exception_handler())
            return await super().resolve(name)

    running[1].models = Looking(engine, models.tokenizer)
    await ask()
    assert [type(handler) for handler in handlers] == [ExhaustionReport]
