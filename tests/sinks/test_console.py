import io
import os
import sys
from datetime import UTC, datetime
from types import SimpleNamespace

import attrs
import pytest

import art_core as art
from art_core.sinks.console import ConsoleSink


def row(step=1, split="train", **metrics):
    return art.MetricsRow(
        seq=step,
        attempt=1,
        step=step,
        split=split,
        recorded_at=datetime(2026, 1, 1, tzinfo=UTC),
        metrics={key.replace("__", "/"): value for key, value in metrics.items()},
    )


@pytest.fixture
def printed():
    return []


@pytest.fixture
def sink(printed):
    return ConsoleSink(printed.append)


WHOLE = {
    "reward__mean": 0.5,
    "reward__std_dev": 0.25,
    "reward__exception_rate": 0.125,
    "reward__duration": 9.0,
    "reward__correct": 0.75,
    "reward__group_judged": 1.0,
    "data__step_actor_tokens": 100.0,
    "time__step_actor_s": 2.0,
    "data__step_trainer_tokens": 300.0,
    "time__step_trainer_s": 0.0,
    "time__step_wall_s": 7.25,
    "costs__cum__all": 0.0125,
}


def test_a_train_row_is_a_line_of_headline_numbers_below_their_titles(sink, printed):
    sink.write([row(**WHOLE)])
    titles, values = (line.split("  ") for line in printed)
    titles, values = ([cell.strip() for cell in line if cell.strip()] for line in (titles, values))
    assert dict(zip(titles, values, strict=True)) == {
        "step": "1",
        "reward": "0.500",
        "± std": "0.250",
        "correct": "0.750",
        "group_judged": "1.000",
        "failed": "12%",
        "actor tok/s": "50",
        "trainer tok/s": "-",
        "seconds": "7.2",
        "$ so far": "0.0125",
    }


def test_titles_and_values_stand_in_columns(sink, printed):
    sink.write([row(**WHOLE), row(step=12345, **WHOLE)])
    assert len({len(line) for line in printed}) == 1


def test_the_rollouts_own_metrics_come_first_in_their_order_then_those_of_groups(sink, printed):
    sink.write([row(reward__mean=1.0, reward__group_z=1.0, reward__b=1.0, reward__a=1.0)])
    assert printed[0].split()[:7] == ["step", "reward", "±", "std", "b", "a", "group_z"]


@pytest.mark.parametrize(
    ("width", "last"), [(50, "correct"), (70, "judged"), (80, "failed"), (500, "trainer tok/s")]
)
def test_the_table_fits_the_terminal(sink, printed, monkeypatch, width, last):
    monkeypatch.setenv("COLUMNS", str(width))
    sink.write([row(reward__own_metric=1.0, **WHOLE)])
    assert len(printed[0]) <= width
    assert {"own_metric", "correct"} <= set(printed[0].split())
    assert printed[0].endswith(last)


def test_a_log_has_room_for_120_characters(sink, printed, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    sink.write([row(reward__mean=1.0, **{f"reward__{i}": 1.0 for i in range(99)})])
    assert 100 < len(printed[0]) <= 120


def test_the_terminals_width_counts_where_standard_error_is_one(sink, printed, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(fileno=lambda: 2))
    monkeypatch.setattr(os, "get_terminal_size", lambda fd: os.terminal_size((40, 24)))
    sink.write([row(**WHOLE)])
    assert len(printed[0]) <= 40


def test_a_long_title_is_cut(sink, printed):
    sink.write([row(reward__mean=1.0, reward__share_of_answers_in_the_form=1.0)])
    assert "share_of_answers_…" in printed[0]


def test_the_metrics_to_show_can_be_chosen(printed):
    spec = art.console_sink(columns=["loss/train", "reward/correct", "val/late"])
    sink = attrs.evolve(spec.create(), print_line=printed.append)
    sink.write([row(loss__train=0.5), row(step=2, reward__mean=1.0, reward__correct=0.25)])
    sink.write([row(step=3, other__key=0.125)])
    assert [line.split() for line in printed] == [
        ["step", "loss/train", "correct", "val/late"],
        ["1", "0.5", "-", "-"],
        ["2", "-", "0.25", "-"],
    ]


def test_the_columns_are_those_of_the_first_row(sink, printed):
    sink.write([row(reward__mean=1.0), row(step=2, reward__mean=1.0, reward__late=1.0)])
    assert "late" not in "".join(printed)
    assert len(printed) == 3


def test_titles_are_repeated_every_twenty_rows(sink, printed):
    sink.write([row(step=i, reward__mean=1.0) for i in range(41)])
    assert [i for i, line in enumerate(printed) if "reward" in line] == [0, 21, 42]


def test_a_validation_row_is_a_short_line(sink, printed):
    sink.write([row(step=7, split="val", val__reward=0.625)])
    assert printed == ["     7  val reward 0.625"]


def test_rows_without_a_reward_are_not_shown(sink, printed):
    sink.write([row(loss__train=1.0), row(split="val", val__other=1.0)])
    assert printed == []


def test_lines_go_to_standard_error_beside_any_progress_bar(capsys, tmp_path):
    run = art.RunInfo(project="p", name="m", run_dir=tmp_path)
    sink = ConsoleSink()
    sink.open(run)
    sink.write([row(split="val", val__reward=1.0)])
    sink.close(run)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "     1  val reward 1.000\n")
