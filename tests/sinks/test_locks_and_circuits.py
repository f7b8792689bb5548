"""One process at a time moves a cursor; a sink that keeps failing is not waited for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import art_core as art
from art_core.base.errors import SinkError
from art_core.sinks import delivery
from art_core.sinks.cursor import Cursor, lock_cursor, save_cursor
from art_core.sinks.delivery import BREAK_AFTER, Delivery
from waiting import until


class Kept:
    def __init__(self, fault=None):
        self.fault = fault
        self.seqs = []
        self.tries = 0

    def open(self, run): ...

    def write(self, rows):
        self.tries += 1
        if self.fault:
            raise self.fault
        self.seqs += [row.seq for row in rows]

    def close(self, run): ...


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr(delivery, "FIRST_WAIT_S", 0.01)


def start(book, sink, name="kept"):
    spec = art.SinkSpec(name=name, create=lambda: sink, summary="")
    return Delivery.start([spec], book.run, book.path)


def test_a_cursor_has_one_owner_at_a_time(tmp_path):
    cursor, other = tmp_path / "sinks" / "x.cursor", tmp_path / "sinks" / "y.cursor"
    first = lock_cursor(cursor)
    with pytest.raises(SinkError, match="sink 'x' is already being served by another process"):
        lock_cursor(cursor)
    os.close(lock_cursor(other))
    os.close(first)
    os.close(lock_cursor(cursor))


def test_the_lock_ends_with_its_process(tmp_path):
    cursor = tmp_path / "x.cursor"
    code = (
        "import os, sys, pathlib; from art_core.sinks.cursor import lock_cursor;"
        "lock_cursor(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(cursor)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(SinkError):
            lock_cursor(cursor)
        child.kill()
        child.wait()
        os.close(lock_cursor(cursor))


def test_where_no_file_can_be_made_there_is_no_lock(tmp_path):
    (tmp_path / "sinks").write_text("a file is in the way")
    assert lock_cursor(tmp_path / "sinks" / "x.cursor") == -1


def test_a_follower_waits_for_its_turn_and_goes_on_where_the_other_ended(book):
    cursor = book.run.run_dir / "sinks" / "kept.cursor"
    other = lock_cursor(cursor)
    book.add(3)
    sink = Kept()
    running = start(book, sink)
    until(lambda: running.followers[0].error is not None)
    assert "being served" in running.followers[0].error
    whole = (book.path.stat().st_size // 3) * 2
    save_cursor(cursor, Cursor(offset=whole, seq=2))
    os.close(other)
    assert running.close(5.0)["kept"].undelivered == 0
    assert sink.seqs == [3]


def test_a_circuit_that_is_open_is_said_and_close_tries_once_more(book, caplog):
    sink = Kept(OSError("down"))
    running = start(book, sink)
    book.add(2)
    running.wake(book.log.last.seq)
    until(lambda: sink.tries >= BREAK_AFTER)
    until(lambda: "6 times in a row (OSError: down)" in caplog.text)
    before = sink.tries
    report = running.close(1e6)["kept"]
    assert before < sink.tries <= before + 2
    assert (report.undelivered, report.failures) == (2, sink.tries)


def test_a_sink_that_is_back_at_the_end_gets_everything_although_its_circuit_was_open(book):
    sink = Kept(OSError("down"))
    running = start(book, sink)
    book.add(2)
    running.wake(book.log.last.seq)
    until(lambda: sink.tries >= BREAK_AFTER)
    sink.fault = None
    report = running.close(30.0)["kept"]
    assert (sink.seqs, report.undelivered, report.failures) == ([1, 2], 0, 0)


def test_what_was_not_delivered_is_told_with_the_command_that_delivers_it(book, caplog):
    book.add(1)
    start(book, Kept(OSError("down"))).close(0.1)
    assert f"art sync {book.run.run_dir} --sink kept" in caplog.text
