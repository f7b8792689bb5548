import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime

import attrs
import pytest

from art_core.base.errors import HistoryError
from art_core.log import history
from art_core.log.history import HistoryLog, MetricsRow, last_row
from art_core.log.rows import cursor_at, read_rows, scenario_ids_of, unreadable_totals
from art_core.log.summary import read_summary
from art_core.metrics.taxonomy import builtin_taxonomy
from waiting import until


def row(seq, **metrics):
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return MetricsRow(seq=seq, attempt=1, step=seq, split="train", recorded_at=at, metrics=metrics)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "history.jsonl"


@pytest.fixture
def log(path):
    opened = HistoryLog.open(path)
    yield opened
    opened.close()


def seqs(path):
    return [r.seq for r, _ in read_rows(path)]


def test_rows_come_back_in_order_with_the_offsets_after_them(log, path):
    for seq in (1, 2, 3):
        log.append(row(seq))
    rows = list(read_rows(path))
    assert [r.seq for r, _ in rows] == [1, 2, 3]
    assert rows[-1][1] == path.stat().st_size
    assert [r.seq for r, _ in read_rows(path, rows[0][1])] == [2, 3]
    assert log.last == row(3)


def test_an_opened_log_goes_on_after_its_last_row(log, path):
    log.append(row(1))
    log.close()
    again = HistoryLog.open(path)
    assert again.last == row(1)
    again.append(row(2))
    again.close()
    assert seqs(path) == [1, 2]


def test_a_torn_tail_that_cannot_be_moved_aside_is_an_error_and_the_log_stays_free(path):
    path.with_name("history.torn").mkdir(parents=True)
    path.write_bytes(row(1).to_line() + b"{torn")
    with pytest.raises(HistoryError, match=r"cannot repair the torn end of .*history\.torn"):
        HistoryLog.open(path)
    assert path.read_bytes().endswith(b"{torn")
    path.with_name("history.torn").rmdir()
    opened = HistoryLog.open(path)
    assert opened.last == row(1)
    opened.close()


@pytest.mark.parametrize("torn", [b'{"seq":2', b"\0\0\0\0", b"x" * 200_000])
def test_a_torn_tail_is_moved_aside_and_said(path, caplog, torn):
    path.parent.mkdir()
    path.write_bytes(row(1).to_line() + torn)
    opened = HistoryLog.open(path)
    assert opened.last == row(1)
    opened.append(row(2))
    opened.close()
    assert seqs(path) == [1, 2]
    assert path.with_name("history.torn").read_bytes() == torn + b"\n"
    assert "torn line" in caplog.text


def test_a_log_that_is_one_torn_line_opens_empty(path):
    path.parent.mkdir()
    path.write_bytes(b"x" * 200_000)
    opened = HistoryLog.open(path)
    assert opened.last is None
    opened.close()
    assert path.stat().st_size == 0


def test_blank_and_foreign_lines_are_passed_over(path, caplog):
    path.parent.mkdir()
    crlf = row(2).to_line().replace(b"\n", b"\r\n")
    path.write_bytes(
        row(1).to_line() + b"\n" + b"\0\0\n" + b"not json\n" + crlf + b"\r\n" + b"junk\n"
    )
    assert seqs(path) == [1, 2]
    assert last_row(path) == row(2)
    assert "not a row of metrics" in caplog.text


def test_the_last_row_is_found_across_blocks(path):
    path.parent.mkdir()
    wide = row(1, **{f"reward/m{i}": float(i) for i in range(10_000)})
    path.write_bytes(wide.to_line() + b"\n" * 70_000)
    assert last_row(path) == wide


def test_an_empty_log_has_no_last_row(path):
    path.parent.mkdir()
    path.write_bytes(b"")
    assert last_row(path) is None


@pytest.mark.parametrize(
    ("state", "ids"),
    [
        (b'{"_metrics_builder_state": {"unique_scenario_ids": ["a", 5, "b"]}}', {"a", "b", "c"}),
        (b'{"_metrics_builder_state": {"unique_scenario_ids": 5}}', {"c"}),
        (b'{"_metrics_builder_state": 5}', {"c"}),
        (b'{"own": 1}', {"c"}),
        (b"{torn", {"c"}),
    ],
)
def test_scenario_ids_that_art_kept_count(path, state, ids):
    path.parent.mkdir()
    path.with_name("state.json").write_bytes(state)
    path.write_bytes(b'{"step": 1, "_scenario_ids": ["c"]}\n')
    assert scenario_ids_of(path) == ids


def test_a_log_without_a_row_has_no_sums_that_are_unreadable(path):
    path.parent.mkdir()
    path.write_bytes(b"torn\n")
    assert unreadable_totals(path) == []


def test_a_second_writer_is_refused(log, path):
    with pytest.raises(HistoryError, match="in use by another"):
        HistoryLog.open(path)


def test_a_closed_log_refuses_rows_and_closes_twice(log):
    log.close()
    log.close()
    with pytest.raises(HistoryError, match="is closed"):
        log.append(row(1))


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HistoryError, match="cannot open"):
        HistoryLog.open(tmp_path / "file" / "history.jsonl")


def test_a_forked_child_is_refused(log):
    log.append(row(1))
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def child():
        try:
            log.append(row(2))
        except HistoryError as error:
            queue.put(str(error))

    process = context.Process(target=child)
    process.start()
    process.join()
    assert "before this process was forked" in queue.get()


def test_a_full_disk_is_an_error_and_the_log_goes_on_when_space_returns(path):
    code = f"""
import resource, signal
from datetime import UTC, datetime
from pathlib import Path
from art_core.base.errors import HistoryError
from art_core.log.history import HistoryLog
from art_core.log.history import MetricsRow
from art_core.log.summary import read_summary
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
log = HistoryLog.open(Path({str(path)!r}))
def row(seq):
    return MetricsRow(seq=seq, attempt=1, step=seq, split="train", recorded_at=datetime.now(UTC),
                      metrics={{f"reward/m{{i}}": 0.5 for i in range(40)}})
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
log.append(row(1))
for reason in ("the disk took", "File too large"):
    try:
        while True:
            log.append(row(2))
    except HistoryError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.path.stat().st_size, resource.RLIM_INFINITY))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.append(row(3))
log.close()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert "the disk took" in first
    assert "File too large" in second
    assert seqs(path)[0] == 1
    assert seqs(path)[-1] == 3
    assert all(line.endswith(b"}\n") for line in path.read_bytes().splitlines(keepends=True))


def test_a_short_write_is_undone(log, path, monkeypatch):
    log.append(row(1))
    real = os.write
    monkeypatch.setattr(history.os, "write", lambda fd, data: real(fd, data[:7]))
    with pytest.raises(HistoryError, match="the disk took 7 of"):
        log.append(row(2))
    monkeypatch.undo()
    log.append(row(2))
    assert seqs(path) == [1, 2]


def test_a_deleted_log_is_said_at_the_next_row_after_a_sync(log, path):
    log.append(row(1))
    path.unlink()
    log.sync()
    with pytest.raises(HistoryError, match="deleted while in use"):
        log.append(row(2))


def test_rows_are_synced_in_the_background(path, monkeypatch):
    monkeypatch.setattr(history, "SYNC_SECONDS", 0.01)
    synced = []
    real = os.fdatasync
    monkeypatch.setattr(history.os, "fdatasync", lambda fd: (synced.append(fd), real(fd)))
    opened = HistoryLog.open(path)
    opened.append(row(1))
    until(lambda: synced)
    assert synced == [opened._fd]
    opened.close()


WRITER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from art_core.log.history import HistoryLog
from art_core.log.history import MetricsRow
from art_core.log.summary import read_summary
log = HistoryLog.open(Path(sys.argv[1]))
wide = {f"reward/m{i}": 0.5 for i in range(int(sys.argv[2]))}
given = {"attempt": 1, "split": "train", "recorded_at": datetime.now(UTC), "metrics": wide}
for seq in range(1, 10_000_000):
    log.append(MetricsRow(seq=seq, step=seq, **given))
    print(seq, flush=True)
"""


@pytest.mark.parametrize("width", [10, 60_000])
def test_every_acknowledged_row_survives_kill_9(path, width):
    for trial in range(3):
        target = path.with_name(f"history{trial}.jsonl")
        command = [sys.executable, "-c", WRITER, str(target), str(width)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            acknowledged = 0
            for line in process.stdout:
                acknowledged = int(line)
                if acknowledged >= 5 + trial * 3:
                    break
            process.send_signal(signal.SIGKILL)
            acknowledged = max([acknowledged, *map(int, process.stdout)])
        opened = HistoryLog.open(target)
        opened.close()
        found = seqs(target)
        assert len(found) >= acknowledged
        assert found == list(range(1, len(found) + 1))


def test_a_torn_line_that_is_still_being_written_is_left_for_later(log, path):
    log.append(row(1))
    with path.open("ab") as file:
        file.write(b'{"seq":2')
    assert seqs(path) == [1]


def test_a_disk_that_fails_is_an_error_with_its_reason(log, path, monkeypatch):
    def fail(fd, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(history.os, "write", fail)
    with pytest.raises(HistoryError, match="No space left on device"):
        log.append(row(1))
    monkeypatch.undo()
    log.append(row(1))
    assert seqs(path) == [1]


def test_a_sync_that_comes_after_the_end_does_nothing(log):
    log.append(row(1))
    log.close()
    log.sync()
    assert seqs(log.path) == [1]


def test_the_cursor_of_the_last_row_at_or_before_a_step_counts(path):
    assert cursor_at(path, 9) == 0
    rows = [
        attrs.evolve(row(1), step=1, cursor=10),
        attrs.evolve(row(2), step=2, cursor=20),
        attrs.evolve(row(3), step=2),
        attrs.evolve(row(4), step=2, cursor=15),
    ]
    lines = [each.to_line() for each in rows]
    path.parent.mkdir()
    assert MetricsRow.from_line(lines[0]).cursor == 10
    assert MetricsRow.from_line(lines[2]).cursor is None
    path.write_bytes(b"".join(lines) + b'{"step": 1, "_cursor": "odd"}\n{"_cursor": 3}\n{"_cursor')
    assert [cursor_at(path, step) for step in (0, 1, 2, 9)] == [0, 10, 15, 15]


def test_scenario_ids_are_found_without_reading_every_row(path):
    path.parent.mkdir()
    first = attrs.evolve(row(1), scenario_ids=("a", "b"))
    third = attrs.evolve(row(3), scenario_ids=("c",))
    lines = first.to_line() + row(2).to_line() + third.to_line()
    path.write_bytes(lines + b'{"_scenario_ids": junk}\n{"_scenario_ids":["d"]')
    assert scenario_ids_of(path) == {"a", "b", "c"}


def test_a_row_counts_as_written_where_no_thread_can_be_started_to_sync_it(log, path, monkeypatch):
    def refuse(self):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Timer, "start", refuse)
    log.append(row(1))
    log.append(row(2))
    log.sync()
    assert seqs(path) == [1, 2]


def test_a_byte_order_mark_costs_no_row(tmp_path):
    log = tmp_path / "history.jsonl"
    row = (
        b'{"step":1,"recorded_at":"2026-01-01T00:00:00","_scenario_ids":["a"],"reward/mean":0.5}\n'
    )
    log.write_bytes(b"\xef\xbb\xbf" + row)
    assert [row.step for row, _ in read_rows(log)] == [1]
    assert last_row(log).metrics == {"reward/mean": 0.5}
    assert scenario_ids_of(log) == {"a"}
    log.write_bytes(b"\xef\xbb\xbf" + row + row.replace(b"1", b"2", 1))
    page = read_summary(log, builtin_taxonomy())
    assert page.rows == 2
