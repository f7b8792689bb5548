import math
from datetime import UTC, datetime
from decimal import Decimal

import attrs
import orjson
import pytest

from art_core.base.errors import HistoryError
from art_core.log.history import MetricsRow

ROW = MetricsRow(
    seq=3,
    attempt=2,
    step=1,
    split="train",
    recorded_at=datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC),
    metrics={"reward/mean": 1.0, "costs/all": 0.1},
    nonfinite={"loss/train": "nan"},
    scenario_ids=("a", "b"),
)


def test_a_row_is_one_line_of_flat_strict_json():
    assert ROW.to_line() == (
        b'{"schema":1,"seq":3,"attempt":2,"step":1,"split":"train",'
        b'"recorded_at":"2026-05-04T03:02:01+00:00","_nonfinite":{"loss/train":"nan"},'
        b'"_scenario_ids":["a","b"],"reward/mean":1.0,"costs/all":0.1}\n'
    )


def test_a_row_is_read_back_whole():
    assert MetricsRow.from_line(ROW.to_line()) == ROW


def test_a_row_without_metrics_is_a_line_too():
    row = MetricsRow(seq=1, attempt=1, step=0, split="val", recorded_at=ROW.recorded_at, metrics={})
    assert orjson.loads(row.to_line())["seq"] == 1
    assert MetricsRow.from_line(row.to_line()) == row


def test_a_row_that_the_art_reference_wrote_is_read():
    line = (
        b'{"training_step": 4, "train/reward": 1, "recorded_at": "2026-03-01T00:00:00", "a": "x"}'
    )
    assert MetricsRow.from_line(line).recorded_at == datetime(2026, 3, 1).astimezone()
    row = MetricsRow.from_line(line)
    assert (row.step, row.seq, row.metrics, row.recorded_at.tzinfo) == (
        4,
        0,
        {"train/reward": 1.0},
        UTC,
    )


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b'{"step": 1}',
        b'{"recorded_at": "2026-01-01"}',
        b'{"step": 1, "recorded_at": "1"}',
    ],
)
def test_a_line_that_is_no_row_is_an_error(line):
    with pytest.raises(HistoryError, match="not a row of metrics"):
        MetricsRow.from_line(line)


def test_parts_that_json_cannot_hold_are_converted_or_dropped_and_the_rest_is_written(caplog):
    odd = attrs.evolve(
        ROW,
        scenario_ids=("s-\ud800", "b"),
        receipts=(
            {
                "leaf": "costs/train/judge",
                "usd": 1.25,
                "calls": True,
                "input_tokens": 2**70,
                "output_tokens": Decimal(5),
                "device_seconds": 10**400,
                "rates": {"source": "list \udfff", "as_of": object(), "steps": [1, math.nan]},
            },
        ),
    )
    stored = orjson.loads(odd.to_line())
    assert stored["costs/all"] == 0.1
    assert stored["_scenario_ids"] == ["s-\\ud800", "b"]
    assert stored["_receipts"] == [
        {
            "leaf": "costs/train/judge",
            "usd": 1.25,
            "calls": True,
            "input_tokens": 2.0**70,
            "output_tokens": 5.0,
            "rates": {"source": "list \\udfff", "steps": [1, None]},
        }
    ]
    assert caplog.text.count("a part of the row can't be written as it is") == 1


@pytest.mark.parametrize(
    ("other", "behind"),
    [
        (None, False),
        ({"seq": 6, "step": 9}, True),
        ({"seq": 6, "step": 4}, False),
        ({"seq": 7, "step": 9}, False),
        ({"seq": 8, "step": 9}, False),
        ({"seq": 6, "step": 9, "attempt": 1}, False),
    ],
)
def test_a_row_is_behind_one_of_a_later_step_that_was_logged_before(other, behind):
    late = attrs.evolve(ROW, seq=7, attempt=2, step=4)
    assert late.is_behind(other and attrs.evolve(late, **other)) is behind


def test_a_row_without_totals_keeps_what_belongs_to_its_step():
    own = {"val/reward": 0.5, "costs/all": 0.1, "val/accumulated": 1.0, "val/cumulative/x": 1.0}
    totals = {
        "costs/cum/all": 1.0,
        "val/cum/x": 1.0,
        "time/wall_clock_sec": 1.0,
        "time/attempt_sec": 1.0,
        "throughput/avg_actor_tok_per_s": 1.0,
    }
    row = attrs.evolve(ROW, metrics=own | totals)
    assert row.without_totals().metrics == own
