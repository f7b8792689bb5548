from __future__ import annotations

from datetime import UTC, datetime

import attrs
import pytest

import art_core as art
from art_core.sinks import protocol as lines


def row(seq, step, **metrics):
    return art.MetricsRow(
        seq=seq,
        attempt=1,
        step=step,
        split="train",
        recorded_at=datetime(2026, 1, 1, tzinfo=UTC),
        metrics={key.replace("__", "/"): value for key, value in metrics.items()},
    )


@pytest.fixture
def line(tmp_path):
    return art.CurrentLine(art.RunInfo(project="p", name="m", run_dir=tmp_path))


def seconds(change):
    return {step: values["time/step_wall_s"] for step, values in change.values.items()}


def test_a_row_that_comes_again_is_counted_once(line):
    first, second = row(1, 1, time__step_wall_s=40.0), row(2, 1, time__step_wall_s=20.0)
    assert line.trained == set()
    assert [seconds(line.change(r)) for r in (first, second)] == [{1: 40.0}, {1: 60.0}]
    assert [seconds(line.change(r)) for r in (first, second)] == [{1: 40.0}, {1: 60.0}]
    assert line.trained == {1}


def test_rows_that_come_again_much_later_change_nothing(line, monkeypatch):
    monkeypatch.setattr(lines, "_REMEMBERED", 2)
    rows = [row(n, n, time__step_wall_s=1.0) for n in (1, 2, 3)]
    for each in rows:
        line.change(each)
    assert [seconds(line.change(each)) for each in rows] == [{}, {2: 1.0}, {3: 1.0}]


def test_rows_of_art_have_no_number_to_tell_repeats_by(line):
    foreign = attrs.evolve(row(0, 1, time__step_wall_s=1.0), split="", attempt=0)
    assert [seconds(line.change(foreign)) for _ in range(2)] == [{1: 1.0}, {1: 2.0}]


def test_what_the_log_has_before_the_first_row_counts(line):
    before = [row(n, n, time__step_wall_s=2.0) for n in (1, 2)]
    log = line.run.run_dir / "history.jsonl"
    log.write_bytes(b"".join(each.to_line() for each in before))
    assert seconds(line.change(row(3, 2, time__step_wall_s=1.0))) == {2: 3.0}
    assert line.trained == {1, 2}
