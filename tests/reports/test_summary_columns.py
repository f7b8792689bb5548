from __future__ import annotations

import io
import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import art_core as art
from art_core.log import summary as summaries
from art_core.log import summary_columns
from art_core.log.summary import kept_summary, read_summary
from art_core.log.summary_columns import scan_columns
from art_core.log.summary_line import summary_of_line
from art_core.log.summary_page import Summary
from art_core.metrics.catalogue import builtin_taxonomy
from art_core.metrics.taxonomy import MetricSpec

TAXONOMY = builtin_taxonomy()
ASKED = {"reward/mean": True, "loss/train": True, "val/reward": False, "costs/cum/all": False}


def scanned(log, asked=None):
    with log.path.open("rb") as file:
        return scan_columns(file, ASKED if asked is None else asked, TAXONOMY)


def entry(log, key, *, best=True):
    e = scanned(log, {key: best}).metrics[key]
    return (e.first, e.last, e.best, e.best_step)


def test_a_metric_has_its_first_last_and_best_value_by_its_direction(log):
    for reward, loss in ((0.25, 3.0), (0.75, 1.0), (0.5, 2.0)):
        log.add(reward__mean=reward, loss__train=loss)
    assert entry(log, "reward/mean") == (0.25, 0.5, 0.75, 2)
    assert entry(log, "loss/train") == (3.0, 2.0, 1.0, 2)


def test_sums_over_the_run_have_no_best(log):
    log.add(costs__cum__all=1.0)
    log.add(costs__cum__all=2.0)
    assert entry(log, "costs/cum/all") == (1.0, 2.0, None, None)


def test_of_a_metric_without_its_best_the_newest_value_is_told_alone(log):
    log.add(reward__mean=0.75)
    log.add(reward__mean=0.5)
    first, *others = entry(log, "reward/mean", best=False)
    assert math.isnan(first)
    assert others == [0.5, None, None]


def test_a_newest_value_that_was_not_finite_is_nan_and_the_best_stays(log):
    log.add(loss__train=1.0, nonfinite={"reward/mean": "nan"})
    assert "reward/mean" not in scanned(log).metrics
    log.add(reward__mean=0.5)
    log.add(loss__train=1.0, nonfinite={"reward/mean": "nan"})
    first, last, *best = entry(log, "reward/mean")
    assert (first, best) == (0.5, [0.5, 2])
    assert math.isnan(last)
    assert math.isnan(entry(log, "reward/mean", best=False)[1])


@pytest.mark.parametrize(
    "rows",
    [
        [(1, 1), (1, 2), (1, 3), (2, 2)],
        [(1, 1), (1, 2), (2, 2)],
        [(1, 1), (1, 3), (1, 2)],
        [(1, 3), (2, 2), (3, 5)],
    ],
)
def test_a_log_whose_rows_may_change_older_steps_is_left_to_the_full_reader(log, rows):
    for attempt, step in rows:
        log.add(step=step, attempt=attempt, reward__mean=step)
    assert scanned(log) is None


def test_an_attempt_that_goes_on_is_scanned(log):
    for attempt, step in ((1, 1), (1, 2), (2, 3)):
        log.add(step=step, attempt=attempt, reward__mean=step)
    assert entry(log, "reward/mean") == (1, 3, 3, 3)


def test_of_rows_of_a_step_the_newest_counts_or_the_sum(log):
    for step, reward, seconds in ((1, 0.5, 40), (1, 0.25, 20), (2, 0.125, 50), (2, 0.375, 5)):
        log.add(step=step, reward__mean=reward, time__step_wall_s=seconds)
    assert entry(log, "reward/mean") == (0.25, 0.375, 0.375, 2)
    assert entry(log, "time/step_wall_s") == (60, 55, 55, 2)
    assert entry(log, "time/step_wall_s", best=False)[1] == 55


def test_a_key_within_another_key_or_in_text_is_no_value(log):
    log.add(reward__mean=0.5)
    log.add(**{'own/x"reward/mean': 2.0, "own/reward/mean": 3.0, "reward/mean_of_all": 4.0})
    log.add(split='"reward/mean":5.0', own__x=6.0)
    assert entry(log, "reward/mean") == (0.5, 0.5, 0.5, 1)


def test_a_key_is_told_from_another_that_ends_like_it_in_every_row(log):
    log.add(**{'own/x"reward/mean': 2.0, "reward/mean": 0.5})
    log.add(**{'own/x"reward/mean': 2.0, "reward/mean": 0.25})
    assert entry(log, "reward/mean") == (0.5, 0.25, 0.5, 1)


def test_a_torn_last_line_is_left_out(log):
    log.add(reward__mean=0.5)
    whole = log.path.stat().st_size
    log.raw(b'{"schema":1,"seq":2,"attempt":1,"step":2,"split":"train","reward/mean":0.7')
    page = scanned(log)
    assert (page.rows, page.offset, page.metrics["reward/mean"].best) == (1, whole, 0.5)


HEAD = b'{"schema":1,"seq":2,"attempt":1,"step":2,"split":"train","recorded_at":"2026-03-01"'


@pytest.mark.parametrize(
    "line",
    [
        b'{"step":2,"train/reward":0.75}',
        HEAD.replace(b":", b": ") + b', "reward/mean": 0.75}',
        HEAD + b',"reward/mean":0',
        HEAD + b',"a":\0\0\0}',
        HEAD + b',"reward/mean":null}',
        HEAD + b',"reward/mean":{"a":1}}',
        HEAD + b',"train/reward":0.75}',
        b"",
    ],
)
def test_a_log_with_a_row_of_another_form_is_left_to_the_full_reader(log, line):
    log.add(reward__mean=0.5)
    log.raw(HEAD + b',"reward/mean":0.75}\n')
    log.add(step=3, reward__mean=0.5)
    assert entry(log, "reward/mean") == (0.5, 0.5, 0.75, 2)
    log.raw(line + b"\n")
    log.add(reward__mean=0.5)
    assert scanned(log) is None


@pytest.mark.parametrize("line", [HEAD + b",}", HEAD.replace(b"recorded_at", b"at") + b"}"])
def test_a_log_whose_end_is_no_row_is_left_to_the_full_reader(log, line):
    log.add(reward__mean=0.5)
    log.raw(line + b"\n")
    assert scanned(log) is None


def test_a_log_without_a_whole_line_is_left_to_the_full_reader(log):
    assert scanned(log) is None
    log.raw(HEAD)
    assert scanned(log) is None


@pytest.fixture
def always(monkeypatch):
    """Scan the shortest of logs."""
    monkeypatch.setattr(summaries, "_WORTH_A_SCAN", 0)


def read(log, asked):
    return read_summary(log.path, TAXONOMY, asked=asked)


def test_a_page_about_some_metrics_answers_who_asks_for_them_again(log, always):
    log.add(reward__mean=0.5, own__x=1.0)
    page = read(log, {"reward/mean": True})
    assert (page.asked, set(page.metrics)) == ({"reward/mean": True}, {"reward/mean"})
    assert kept_summary(log.path, TAXONOMY, {"reward/mean": True}) == page
    assert kept_summary(log.path, TAXONOMY, {"reward/mean": False}) == page


@pytest.mark.parametrize(
    "asked", [None, {"own/x": False}, {"reward/mean": False, "loss/train": True}]
)
def test_who_asks_for_another_metric_makes_the_page_whole(log, always, asked):
    log.add(reward__mean=0.5, loss__train=1.0, own__x=1.0)
    read(log, {"reward/mean": True, "loss/train": False})
    assert kept_summary(log.path, TAXONOMY, asked) == Summary()
    page = read(log, asked)
    assert (page.asked, set(page.metrics)) == (None, {"reward/mean", "loss/train", "own/x"})


def test_a_log_that_grew_makes_the_page_whole(log, always):
    log.add(reward__mean=0.5)
    read(log, {"reward/mean": True})
    log.add(reward__mean=0.75)
    page = read(log, {"reward/mean": True})
    assert (page.asked, page.rows, page.metrics["reward/mean"].best) == (None, 2, 0.75)


def test_a_short_log_is_read_whole_at_once(log):
    log.add(reward__mean=0.5, own__x=1.0)
    assert set(read(log, {"reward/mean": True}).metrics) == {"reward/mean", "own/x"}


def test_a_log_that_cannot_be_scanned_is_read_whole(log, always):
    log.raw(b'{"step":1,"train/reward":0.5}\n')
    assert read(log, {"reward/mean": True}).metrics["reward/mean"].best == 0.5


KEYS = (
    "reward/mean", "reward/mean_of_all", "own/reward/mean", 'own/x"reward/mean', "loss/train",
    "train/loss", "val/reward", "costs/cum/all", "own/ä", "own/x,y}",
)  # fmt: skip
WHEN = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
values = st.floats(width=16) | st.sampled_from([0.0, -0.0, 0.5, 1e300, 5e-324])
metrics = st.dictionaries(st.sampled_from(KEYS), values)
attempts = st.lists(
    st.tuples(
        st.integers(0, 6),
        st.lists(st.tuples(metrics, st.integers(0, 1), st.integers(1, 4)), max_size=6),
    ),
    max_size=4,
)


def lines_of(attempts):
    """Rows of attempts: each begins at a step, of which some rows are for the same step, and a
    row may come several times, as those of a long run with the same metrics.
    """
    seq = 0
    for attempt, (first, rows) in enumerate(attempts, 1):
        step = first
        for values, forward, times in rows:
            for _ in range(times):
                seq += 1
                step += forward
                finite = {k: v for k, v in values.items() if math.isfinite(v)}
                odd = {k: str(v) for k, v in values.items() if not math.isfinite(v)}
                yield art.MetricsRow(
                    seq=seq,
                    attempt=attempt,
                    step=step,
                    split="train",
                    recorded_at=WHEN + timedelta(seconds=seq),
                    metrics=finite,
                    nonfinite=odd,
                    scenario_ids=('"reward/mean":7.0', ',"reward/mean":7.0'),
                    receipts=({"leaf": "costs/cum/all", "item": "own/ä", "rates": {"x": 1.0}},),
                ).to_line()


@given(
    attempts=attempts,
    asked=st.dictionaries(st.sampled_from(KEYS), st.booleans()),
    chunk=st.sampled_from([1, 300, 1000, 1 << 18]),
    torn=st.integers(0, 40),
)
@example(
    attempts=[(0, [({"reward/mean": 0.5}, 1, 1), ({"reward/mean": math.nan}, 1, 2)])],
    asked={"reward/mean": False},
    chunk=1,
    torn=0,
)
def test_a_scan_finds_what_decoding_every_row_finds(attempts, asked, chunk, torn):
    log = b"".join(lines_of(attempts))
    log = log[: max(0, len(log) - torn)]
    turned = TAXONOMY.extended([MetricSpec(key="own/ä", unit="", help="", direction="lower")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(summary_columns, "_CHUNK", chunk)
        found = scan_columns(io.BytesIO(log), asked, turned)
    full = summary_of_line(io.BytesIO(log), turned)
    if found is None:
        first = {n: min(steps) for n, steps in steps_of(log).items()}
        last = {n: max(steps) for n, steps in steps_of(log).items()}
        assert not full.rows or any(first[n] <= last[m] for n in first for m in last if m < n)
        return
    expected = {key: e for key, e in full.metrics.items() if key in asked}
    assert found.metrics.keys() == expected.keys()
    for key, e in expected.items():
        assert plain(found.metrics[key]) == plain(e, whole=asked[key])
    assert (found.rows, found.offset, found.step) == (full.rows, full.offset, full.step)
    assert (found.started, found.ended) == (full.started, full.ended)


def steps_of(log):
    """Return the steps of each attempt."""
    steps = {}
    for line in log.splitlines(keepends=True):
        if line.endswith(b"\n"):
            row = art.MetricsRow.from_line(line)
            steps.setdefault(row.attempt, []).append(row.step)
    return steps


def plain(entry, *, whole=True):
    """An entry as text, in which NaN is equal to itself and -0.0 is not 0.0."""
    hidden = (math.nan, entry.last, None, None)
    shown = (entry.first, entry.last, entry.best, entry.best_step)
    return repr(shown if whole else hidden)
