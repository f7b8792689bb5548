from __future__ import annotations

import builtins
import csv
import re

import pytest

from art_core.base.errors import ConfigError
from art_core.log.reader import FIELDS, LoggedRun
from art_core.log.rows import read_rows
from art_core.metrics.receipt import Receipt
from art_core.reports import export as exports
from art_core.reports.export import export


@pytest.fixture
def filled(log):
    log.add(reward__mean=1 / 3)
    log.add(split="val", val__reward=0.5, receipts=[Receipt(leaf="costs/gpu", item="card")])
    log.raw(b'{"training_step":3,"recorded_at":"2026-05-01T00:00:00","train/reward":0.25}\n')
    return log


def test_csv_has_the_union_of_keys_under_todays_names_at_full_precision(filled, tmp_path):
    assert export(LoggedRun(filled.path.parent), "csv", tmp_path / "x.csv") == 3
    with (tmp_path / "x.csv").open() as file:
        first, second, third = csv.DictReader(file)
    assert list(first) == [*FIELDS, "reward/mean", "val/reward"]
    assert float(first["reward/mean"]) == 1 / 3
    assert (first["val/reward"], second["reward/mean"], third["reward/mean"]) == ("", "", "0.25")
    assert (second["split"], first["recorded_at"]) == ("val", "2026-03-01T12:01:00+00:00")


def test_json_lines_are_rows_with_their_receipts(filled, tmp_path):
    out = tmp_path / "x.jsonl"
    assert export(LoggedRun(filled.path.parent), "jsonl", out) == 3
    rows = [row for row, _ in read_rows(out)]
    assert rows[:2] == [row for row, _ in read_rows(filled.path)][:2]
    assert rows[2].metrics == {"reward/mean": 0.25}


@pytest.mark.parametrize("batch", [2, 3, 10_000])
def test_parquet_has_typed_columns(filled, tmp_path, monkeypatch, batch):
    pq = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(exports, "_ROWS_AT_ONCE", batch)
    assert export(LoggedRun(filled.path.parent), "parquet", tmp_path / "x.parquet") == 3
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.column("reward/mean").to_pylist() == [1 / 3, None, 0.25]
    assert table.column("step").to_pylist() == [1, 2, 3]
    assert str(table.schema.field("recorded_at").type) == "timestamp[us, tz=UTC]"


def test_without_pyarrow_the_error_says_what_to_install_and_nothing_is_left(
    filled, tmp_path, monkeypatch
):
    real = builtins.__import__

    def missing(name, *rest):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    out = tmp_path / "out" / "x.parquet"
    out.parent.mkdir()
    with pytest.raises(ConfigError, match=r"pip install 'art-core\[parquet\]'"):
        export(LoggedRun(filled.path.parent), "parquet", out)
    assert list(out.parent.iterdir()) == []


def test_a_file_that_was_there_is_kept_until_the_new_one_is_whole(filled, tmp_path, monkeypatch):
    out = tmp_path / "x.csv"
    out.write_text("before")

    def fail(rows, aside):
        aside.write_text("half")
        raise OSError("disk full")

    monkeypatch.setitem(exports.FORMATS, "csv", fail)
    with pytest.raises(OSError, match="disk full"):
        export(LoggedRun(filled.path.parent), "csv", out)
    assert out.read_text() == "before"
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        (
            "step",
            "1180591620717411303424",
            "the step 1180591620717411303424, and Parquet takes only",
        ),
        ("seq", '"first"', "the seq 'first', and Parquet takes only whole numbers"),
        ("attempt", "1.5", "the attempt 1.5, and Parquet takes"),
        ("split", "7", "the split 7, not a text"),
    ],
)
def test_a_value_that_parquet_cannot_hold_is_named(log, tmp_path, field, value, problem):
    log.raw(
        b'{"step":1,"recorded_at":"2026-01-01T00:00:00","%b":%b}\n'
        % (field.encode(), value.encode())
    )
    with pytest.raises(ConfigError, match=re.escape(problem)):
        export(LoggedRun(log.path.parent), "parquet", tmp_path / "x.parquet")
    assert list(tmp_path.glob("*x.parquet*")) == []
    assert export(LoggedRun(log.path.parent), "csv", tmp_path / "x.csv") == 1


def test_a_step_that_json_lines_cannot_hold_is_named(log, tmp_path):
    log.raw(b'{"step":%d,"recorded_at":"2026-01-01T00:00:00"}\n' % 2**70)
    with pytest.raises(ConfigError, match=f"the row of step {2**70} .* Export it as csv"):
        export(LoggedRun(log.path.parent), "jsonl", tmp_path / "x.jsonl")
