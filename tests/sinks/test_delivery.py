import subprocess
import sys
import threading

import attrs
import pytest

import art_core as art
from art_core.sinks import delivery
from art_core.sinks.cursor import Cursor, load_cursor, save_cursor
from art_core.sinks.delivery import Delivery, DeliveryReport, wait_after
from waiting import until


@attrs.define
class Shelf:
    """A sink that keeps rows, and fails where and as often as the test decides."""

    faults: dict = attrs.field(factory=dict)
    seqs: list = attrs.field(factory=list)
    events: list = attrs.field(factory=list)

    def at(self, where):
        self.events.append(where)
        fault = self.faults.get(where, [])
        if callable(fault):
            fault()
        elif fault:
            raise fault.pop(0)

    def create(self):
        self.at("create")
        return self

    def open(self, run):
        self.at("open")

    def write(self, rows):
        self.at("write")
        self.seqs += [row.seq for row in rows]

    def close(self, run):
        self.at("close")
        self.events.append(run.status)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr(delivery, "FIRST_WAIT_S", 0.02)


@pytest.fixture
def start(book):
    """Start a delivery to sinks, each given as a Shelf; those that hang are freed at the end."""
    begun = []

    def begin(*shelves, **options):
        specs = [
            art.SinkSpec(name=f"shelf{i}", create=s.create, summary="", **options)
            for i, s in enumerate(shelves)
        ]
        begun.append(Delivery.start(specs, book.run, book.path))
        return begun[-1]

    yield begin
    for each in begun:
        each.close(0.1)


@attrs.define
class Clock:
    """A clock that goes on only while a sink's follower sleeps."""

    now: float = 100.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(delivery, "time", made)
    monkeypatch.setattr(delivery, "FIRST_WAIT_S", 2.0)
    return made


@pytest.fixture
def joined(monkeypatch):
    """How long `close` was ready to wait for each sink, in seconds."""
    waits, real = [], threading.Thread.join

    def join(thread, timeout=None):
        if thread.name.startswith("art-sink-"):
            waits.append(timeout)
        real(thread, timeout)

    monkeypatch.setattr(threading.Thread, "join", join)
    return waits


DELIVERED = {"shelf0": DeliveryReport(sink="shelf0", undelivered=0, error=None)}


def test_rows_are_delivered_in_order_and_the_sink_is_closed_with_the_runs_status(book, start):
    shelf = Shelf()
    running = start(shelf)
    book.add(2)
    running.wake(book.log.last.seq)
    until(lambda: shelf.seqs == [1, 2])
    book.add(1)
    assert running.close(5.0, "failed") == DELIVERED
    assert shelf.seqs == [1, 2, 3]
    assert shelf.events[:2] == ["create", "open"]
    assert shelf.events[-2:] == ["close", "failed"]


def test_a_sink_without_rows_is_opened_and_closed(start):
    shelf = Shelf()
    assert start(shelf).close(5.0) == DELIVERED
    assert shelf.events == ["create", "open", "close", "finished"]


def test_the_cursor_follows_the_rows(book, start):
    shelf = Shelf()
    running = start(shelf)
    book.add(3)
    running.close(5.0)
    cursor = load_cursor(book.run.run_dir / "sinks" / "shelf0.cursor")
    assert (cursor.seq, cursor.offset) == (3, book.path.stat().st_size)


@pytest.mark.parametrize("where", ["create", "open", "write", "close"])
@pytest.mark.parametrize("error", [OSError("down"), SystemExit(1), KeyboardInterrupt()], ids=repr)
def test_a_sink_that_raises_is_tried_again_until_it_takes_its_rows(
    book, start, caplog, where, error
):
    shelf = Shelf({where: [error, error, error]})
    book.add(2)
    assert start(shelf).close(5.0) == DELIVERED
    assert shelf.seqs == [1, 2]
    assert shelf.events.count(where) == 4
    assert shelf.events.count("finished") == 1
    assert caplog.text.count("sink 'shelf0' failed") == 1


def test_a_batch_that_failed_comes_again_whole(book, start):
    """At least once, in order: what a failing write had taken is repeated."""

    class Half(Shelf):
        def write(self, rows):
            self.seqs.append(rows[0].seq)
            self.at("write")
            self.seqs += [row.seq for row in rows[1:]]

    shelf = Half({"write": [OSError()]})
    book.add(3)
    start(shelf).close(5.0)
    assert shelf.seqs == [1, 1, 2, 3]


def test_waits_double_from_half_a_second_up_to_a_minute_with_jitter(monkeypatch):
    monkeypatch.setattr(delivery, "FIRST_WAIT_S", 0.5)
    for failures, longest in [(1, 0.5), (2, 1.0), (3, 2.0), (7, 32.0), (8, 60.0), (10_000, 60.0)]:
        waits = [wait_after(failures) for _ in range(100)]
        assert longest / 2 <= min(waits) < max(waits) <= longest


def test_a_sink_that_is_down_is_not_tried_all_the_time(book, start):
    waits = []

    class Closing(threading.Event):
        def wait(self, timeout=None):
            waits.append(timeout)
            return super().wait(0)

    def down():
        follower._closing = closing
        raise OSError("down")

    closing = Closing()
    running = start(Shelf({"write": down}))
    (follower,) = running.followers
    book.add(1)
    running.wake(book.log.last.seq)
    until(lambda: len(waits) >= 5)
    longest = [0.02, 0.04, 0.08, 0.16, 0.32]
    assert all(most / 2 <= wait <= most for wait, most in zip(waits, longest, strict=False))


def test_an_outage_that_ended_is_forgotten_and_the_next_one_is_said(book, start, caplog):
    shelf = Shelf({"write": [OSError("first")]})
    running = start(shelf)
    book.add(1)
    running.wake(book.log.last.seq)
    until(lambda: shelf.seqs == [1])
    shelf.faults["write"] = [OSError("second"), OSError("second")]
    book.add(1)
    assert running.close(5.0) == DELIVERED
    said = [r.getMessage() for r in caplog.records]
    assert [("first" in s, "second" in s) for s in said] == [(True, False), (False, True)]


@pytest.mark.parametrize("where", ["create", "open", "write"])
def test_a_sink_that_stays_down_reports_what_it_did_not_take(book, start, caplog, where, clock):
    def down():
        raise OSError("no route")

    running = start(Shelf({where: down}))
    book.add(3)
    (report,) = running.close(10.0).values()
    assert 105.0 < clock.now <= 110.0
    assert report == DeliveryReport(sink="shelf0", undelivered=3, error="OSError: no route")
    assert "sink 'shelf0': 3 rows not delivered (OSError: no route)" in caplog.text


def test_a_sink_that_cannot_be_closed_is_said_although_no_row_is_missing(
    book, start, caplog, clock
):
    def down():
        raise OSError("no route")

    book.add(1)
    (report,) = start(Shelf({"close": down})).close(10.0).values()
    assert report == DeliveryReport(sink="shelf0", undelivered=0, error="OSError: no route")
    assert "sink 'shelf0' was not closed (OSError: no route)" in caplog.text


@pytest.mark.parametrize("where", ["create", "open", "write", "close"])
def test_close_meets_its_deadline_while_a_sink_hangs_for_ever(book, start, where, joined):
    free = threading.Event()
    hanging, other = Shelf({where: free.wait}), Shelf()
    running = start(hanging, other)
    book.add(2)
    running.wake(book.log.last.seq)
    until(lambda: other.seqs == [1, 2] == (hanging.seqs if where == "close" else other.seqs))
    reports = running.close(0.2)
    assert len(joined) == 2
    assert 0 < sum(joined) <= 0.2 + 0.01  # the second gets what the first left of it
    missing = 0 if where == "close" else 2
    assert reports["shelf0"] == DeliveryReport(
        sink="shelf0", undelivered=missing, error="did not finish in time"
    )
    assert reports["shelf1"].undelivered == 0
    assert other.seqs == [1, 2]
    free.set()


def test_saying_that_there_is_a_row_takes_no_time_while_a_sink_hangs(book, start):
    free = threading.Event()
    hanging = Shelf({"write": free.wait})
    running = start(hanging)
    book.add(1)
    running.wake(book.log.last.seq)
    until(lambda: "write" in hanging.events)
    for _ in range(1000):
        running.wake(book.log.last.seq)
    assert hanging.seqs == []  # it hung all the time
    free.set()


def test_a_slow_sink_gets_all_rows_within_the_deadline(book, start):
    slow = threading.Event()
    shelf = Shelf({"write": lambda: slow.wait(0.05)})
    running = start(shelf)
    book.add(5)
    running.wake(book.log.last.seq)
    assert running.close(60.0) == DELIVERED
    assert shelf.seqs == [1, 2, 3, 4, 5]


def test_what_was_not_delivered_follows_when_the_run_is_opened_again(book, start):
    def down():
        raise OSError("down")

    first = start(Shelf({"write": down}))
    book.add(2)
    assert first.close(0.1)["shelf0"].undelivered == 2
    book.add(1)
    shelf = Shelf()
    start(shelf).close(5.0)
    assert shelf.seqs == [1, 2, 3]


def test_what_was_delivered_does_not_come_again(book, start):
    book.add(2)
    start(Shelf()).close(5.0)
    book.add(1)
    shelf = Shelf()
    start(shelf).close(5.0)
    assert shelf.seqs == [3]


def test_a_cursor_that_was_lost_costs_repeats_and_no_rows(book, start):
    book.add(2)
    start(Shelf()).close(5.0)
    (book.run.run_dir / "sinks" / "shelf0.cursor").unlink()
    shelf = Shelf()
    start(shelf).close(5.0)
    assert shelf.seqs == [1, 2]


def test_a_cursor_that_cannot_be_kept_is_said_and_costs_nothing(book, start, caplog):
    (book.run.run_dir / "sinks").write_text("a file is in the way")
    shelf = Shelf()
    running = start(shelf)
    book.add(2)
    running.wake(book.log.last.seq)
    until(lambda: "sink 'shelf0' failed" in caplog.text)
    assert running.close(5.0)["shelf0"].undelivered == 0
    assert shelf.seqs == [1, 2]


def test_a_sink_without_backlog_gets_the_rows_from_now_on_and_keeps_no_cursor(book, start):
    book.add(2)
    shelf = Shelf()
    running = start(shelf, backlog=False)
    book.add(1)
    running.close(5.0)
    assert shelf.seqs == [3]
    assert not (book.run.run_dir / "sinks").exists()


@pytest.mark.parametrize("where", ["deleted", "renamed"])
def test_rows_of_a_log_that_is_gone_count_as_not_delivered(book, start, clock, caplog, where):
    running = start(Shelf())
    until(lambda: running.followers[0].opened)
    directory = book.run.run_dir
    if where == "deleted":
        book.path.unlink()
    else:
        directory.rename(directory.with_name("renamed"))
    book.add(2)
    running.wake(2)
    (report,) = running.close(10.0).values()
    assert report.undelivered == 2
    assert "FileNotFoundError" in report.error
    assert f"2 rows not delivered: {directory} has no log any more" in caplog.text
    assert directory.exists() == (where == "deleted")


CHILD = """
import sys, os, threading, time, art_core as art
from art_core.sinks.delivery import Delivery
from pathlib import Path

class File:
    def open(self, run): ...
    def write(self, rows):
        with (folder / "taken").open("a") as file:
            file.writelines(f"{row.seq}\\n" for row in rows)
        if sys.argv[2] == "hang":
            hangs.set()
            time.sleep(1e6)
        if sys.argv[2] == "die":
            os._exit(9)
    def close(self, run): ...

folder, hangs = Path(sys.argv[1]), threading.Event()
run = art.RunInfo(project="p", name="m", run_dir=folder)
spec = art.SinkSpec(name="file", create=File, summary="")
delivery = Delivery.start([spec], run, folder / "history.jsonl")
if sys.argv[2] == "hang":
    hangs.wait()
delivery.close(0.1 if sys.argv[2] == "hang" else 60.0)
"""


@pytest.mark.parametrize("end", ["die", "hang"])
def test_delivery_goes_on_from_the_cursor_in_a_new_process(book, end):
    def child(how):
        command = [sys.executable, "-c", CHILD, str(book.run.run_dir), how]
        return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode

    book.add(2)
    assert child("well") == 0
    book.add(1)
    assert child(end) == (9 if end == "die" else 0)
    assert child("well") == 0
    # The third row was taken, but its cursor was not: it comes again, and nothing else does.
    assert (book.run.run_dir / "taken").read_text().split() == ["1", "2", "3", "3"]


def test_a_cursor_of_a_log_that_is_gone_skips_no_row_of_one_that_outgrows_it(start, book):
    book.add(1)
    save_cursor(book.run.run_dir / "sinks/shelf0.cursor", Cursor(offset=10_000, seq=50))
    shelf = Shelf({"create": [OSError("down")] * 2})
    running = start(shelf)
    (follower,) = running.followers
    until(lambda: follower.error is not None)
    while book.log.size <= 10_000:
        book.add(20)
    running.close(5.0)
    assert shelf.seqs == list(range(1, book.log.last.seq + 1))
