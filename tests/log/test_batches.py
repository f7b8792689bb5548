from __future__ import annotations

import pytest

from art_core.log import timeline
from art_core.log.rows import read_rows
from art_core.log.summary import read_summary
from art_core.log.timeline import Timeline
from art_core.metrics.taxonomy import builtin_taxonomy

TAXONOMY = builtin_taxonomy()
ROW = (
    '{"schema":1,"seq":%d,"attempt":1,"step":%d,"split":"train",'
    '"recorded_at":"2026-03-01T12:00:00+00:00","reward/mean":0.5}\n'
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "history.jsonl"


def lines(count=5):
    return [ROW % (n, n) for n in range(1, count + 1)]


def agree(path):
    """Return the line that batches make; it must be the one that single rows make."""
    found, right = Timeline.of_log(path, TAXONOMY), Timeline(TAXONOMY)
    for row, _ in read_rows(path):
        right.add(row)
    assert (found.rows, found.curves(), found.times()) == (
        right.rows,
        right.curves(),
        right.times(),
    )
    return found


@pytest.mark.parametrize(
    ("old", "new", "rows"),
    [
        ("2026-03-01T12:00:00+00:00", "yesterday", 4),
        ("2026-03-01T12:00:00+00:00", "2026-03-01T12:00:00", 5),
        ("0.5", '"high"', 5),
        ("0.5", "null", 5),
        ("0.5", "3", 5),
        ('"step":3', '"step":1.5', 5),
        ('"step":3', '"step":2', 5),
        ('"step":3', '"step":"x"', 4),
        ('"seq":3', '"seq":0', 5),
        ('"attempt":1', '"attempt":2', 5),
        ('"train"', '"val"', 5),
        ('"schema":1', '"_receipts":[]', 5),
        ('"schema":1', '"_receipts":5', 4),
        ('"schema":1', '"_nonfinite":{"reward/mean":"nan"}', 5),
    ],
)
@pytest.mark.parametrize("others", [False, True])
def test_a_row_unlike_its_neighbours_counts_as_it_does_when_read_alone(
    path, old, new, rows, others
):
    given = lines()
    given[2] = given[2].replace(old, new)
    if others:
        given = [line.replace('"schema":1', '"_receipts":[]') for line in given]
    path.write_text("".join(given))
    assert agree(path).rows == rows


@pytest.mark.parametrize("bad", [0, 4])
def test_a_batch_whose_first_or_last_row_is_none_has_the_others(path, bad, caplog):
    given = lines()
    given[bad] = given[bad].replace("2026", "year")
    path.write_text("".join(given))
    assert agree(path).rows == 4
    assert f"{path}: not a row of metrics" in caplog.text


def test_a_log_without_a_row_has_an_empty_summary_that_is_not_read_again(path):
    path.write_text('{"a/b":1,"c/d":2}\n')
    page = read_summary(path, TAXONOMY)
    assert (page.rows, page.offset) == (0, path.stat().st_size)


def test_rows_with_many_sets_of_metrics_are_all_kept(path, monkeypatch):
    monkeypatch.setattr(timeline, "_MAX_PLANS", 2)
    given = [ROW.replace("reward/mean", f"own/m{n % 4}") % (n, n) for n in range(1, 30)]
    path.write_text("".join(given))
    assert agree(path).logged == {"own/m0", "own/m1", "own/m2", "own/m3"}


def test_columns_that_are_not_asked_for_are_left_out(path):
    path.write_text("".join(lines()).replace('"reward/mean"', '"own/x":1.0,"reward/mean"'))
    line = Timeline.of_log(path, TAXONOMY, lambda key: key == "own/x")
    assert line.curves() == {"own/x": dict.fromkeys(range(1, 6), 1.0)}
