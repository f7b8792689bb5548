from __future__ import annotations

import math
from datetime import UTC, datetime

import attrs
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

import art_core as art
from art_core.log import rows as log_rows
from art_core.log import summary as summaries
from art_core.log.rows import read_rows
from art_core.log.summary import TooLongError, better_values, load_summary, read_summary
from art_core.log.timeline import Timeline
from art_core.metrics.taxonomy import MetricSpec, builtin_taxonomy

TAXONOMY = builtin_taxonomy()
WHEN = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
AT = b'"recorded_at":"2026-05-01T00:00:00"'


def read(log):
    return read_summary(log.path, TAXONOMY)


def stored(log):
    with log.path.open("rb") as file:
        return load_summary(log.path, file, TAXONOMY)


def entry(log, key):
    e = read(log).metrics[key]
    return (e.first, e.last, e.best, e.best_step)


def test_a_metric_has_its_first_last_and_best_value_by_its_direction(log):
    for reward, loss in ((0.25, 3.0), (0.75, 1.0), (0.5, 2.0)):
        log.add(reward__mean=reward, loss__train=loss)
    assert entry(log, "reward/mean") == (0.25, 0.5, 0.75, 2)
    assert entry(log, "loss/train") == (3.0, 2.0, 1.0, 2)


def test_without_a_direction_the_higher_is_the_better_and_sums_have_no_best(log):
    log.add(reward__correct=0.5, costs__cum__all=1.0, time__wall_clock_sec=5.0)
    log.add(reward__correct=0.25, costs__cum__all=2.0, time__wall_clock_sec=9.0)
    assert entry(log, "reward/correct") == (0.5, 0.25, 0.5, 1)
    assert entry(log, "costs/cum/all") == (1.0, 2.0, None, None)
    assert entry(log, "time/wall_clock_sec") == (5.0, 9.0, None, None)


def test_the_page_says_how_far_the_run_came(log):
    log.add(step=1, reward__mean=0.5)
    log.add(step=9, reward__mean=0.5)
    log.add(step=4, split="val", val__reward=0.5)
    page = read(log)
    assert (page.rows, page.step, page.highest_step, page.attempt) == (3, 4, 9, 1)
    assert page.started < page.ended
    assert page.offset == log.path.stat().st_size


def test_only_what_is_new_is_read(log, monkeypatch):
    log.add(reward__mean=0.5)
    before = read(log).offset
    offsets = []
    real = summaries.read_batches

    def spied(file, offset):
        offsets.append(offset)
        return real(file, offset)

    monkeypatch.setattr(summaries, "read_batches", spied)
    read(log)
    assert offsets == []
    log.add(reward__mean=0.75)
    assert entry(log, "reward/mean") == (0.5, 0.75, 0.75, 2)
    assert offsets == [before]


def test_a_torn_last_line_waits_until_it_is_whole(log):
    log.add(reward__mean=0.5)
    log.raw(b'{"schema":1,"seq":2,"step":2,%b,"reward/mean":0.' % AT)
    assert read(log).rows == 1
    log.raw(b"75}\n")
    assert entry(log, "reward/mean") == (0.5, 0.75, 0.75, 2)


def test_a_log_that_is_one_torn_line_says_nothing_yet(log):
    log.raw(b'{"schema":1,"se')
    assert (read(log).rows, read(log).offset) == (0, 0)


@pytest.mark.parametrize(
    "line", [b"{torn\n", b"5\n", b'"x"\n', b"[]\n", b'{"a/b":1}\n', b'{"step":"x","a/b":1}\n']
)
def test_lines_that_are_no_rows_are_passed_over(log, line):
    log.add(reward__mean=0.25)
    log.raw(line)
    log.add(reward__mean=0.5)
    assert entry(log, "reward/mean") == (0.25, 0.5, 0.5, 2)
    assert read(log).rows == 2


def test_blank_lines_are_nothing(log):
    log.raw(b"\n\0\0\n\r\n")
    log.add(reward__mean=0.25)
    assert read(log).rows == 1


def test_values_that_are_no_numbers_are_left_out(log):
    for value in ("null", "1.5", '"text"', "true", "[1]"):
        log.raw(b'{"step":1,%b,"x/a":%b,"x/b":null,"x/c":"text"}\n' % (AT, value.encode()))
    assert entry(log, "x/a") == (1.0, 1.0, 1.0, 1)
    assert set(read(log).metrics) == {"x/a"}


def test_a_newest_value_that_was_not_finite_is_nan_and_the_best_stays(log):
    log.add(reward__mean=0.5)
    log.add(loss__train=1.0, nonfinite={"reward/mean": "nan", "reward/never": "inf"})
    for _ in range(2):
        first, last, best, step = entry(log, "reward/mean")
        assert (first, best, step) == (0.5, 0.5, 1)
        assert math.isnan(last)
    log.add(reward__mean=0.25)
    assert entry(log, "reward/mean")[1] == 0.25


def test_each_of_several_newest_values_that_were_not_finite_is_nan(log):
    log.add(reward__mean=0.5, reward__std_dev=0.25)
    log.add(loss__train=1.0, nonfinite={"reward/mean": "nan"})
    log.add(loss__train=1.0, nonfinite={"reward/std_dev": "inf"})
    assert math.isnan(entry(log, "reward/mean")[1])
    assert math.isnan(entry(log, "reward/std_dev")[1])


def test_a_value_that_stays_not_finite_is_nan_at_its_newest_step(log):
    log.add(reward__mean=0.5)
    for _ in range(3):
        log.add(nonfinite={"reward/mean": "nan"})
        assert math.isnan(entry(log, "reward/mean")[1])
    assert read(log).metrics["reward/mean"].step == 4


def test_former_names_are_todays(log):
    log.raw(b'{"training_step":3,"recorded_at":"2026-05-01T00:00:00","train/reward":0.5}\n')
    log.add(step=4, reward__mean=0.25)
    assert entry(log, "reward/mean") == (0.5, 0.25, 0.5, 3)


def test_a_step_that_a_later_attempt_repeated_counts_as_the_later_had_it(log):
    for step, reward in ((1, 0.1), (2, 0.9), (3, 0.8)):
        log.add(step=step, reward__mean=reward)
    assert entry(log, "reward/mean") == (0.1, 0.8, 0.9, 2)
    log.add(step=2, attempt=2, reward__mean=0.2)
    assert entry(log, "reward/mean") == (0.1, 0.2, 0.2, 2)
    log.add(step=3, attempt=2, reward__mean=0.3)
    assert entry(log, "reward/mean") == (0.1, 0.3, 0.3, 3)
    log.add(step=4, attempt=2, reward__mean=0.4)
    assert entry(log, "reward/mean") == (0.1, 0.4, 0.4, 4)


def test_a_summary_that_needs_too_much_reading_is_not_made(log):
    log.add(step=1, reward__mean=0.5)
    log.add(step=2, reward__mean=0.75)
    before = read(log)
    size = before.offset
    log.add(step=2, attempt=2, reward__mean=0.25)
    with pytest.raises(TooLongError):
        read_summary(log.path, TAXONOMY, max_bytes=size)
    with pytest.raises(TooLongError):
        read_summary(log.path, TAXONOMY, max_bytes=10)
    assert stored(log) == before
    page = read_summary(log.path, TAXONOMY, max_bytes=log.path.stat().st_size)
    assert page.metrics["reward/mean"].best == 0.5
    assert stored(log) == page


def test_a_sum_over_the_run_has_no_best_in_repeated_steps_either(log):
    log.add(step=1, costs__cum__all=1.0)
    log.add(step=1, attempt=2, costs__cum__all=2.0)
    assert entry(log, "costs/cum/all") == (2.0, 2.0, None, None)


def test_steps_that_begin_to_repeat_ever_earlier_are_all_replaced(log):
    for attempt, first in enumerate((1, 4, 2), 1):
        for step in range(first, 6):
            log.add(step=step, attempt=attempt, reward__mean=1.0 / attempt + step / 100)
    assert entry(log, "reward/mean") == (1.01, 1 / 3 + 0.05, 1.01, 1)


def test_blank_and_torn_lines_are_left_out_where_steps_repeat(log):
    log.add(step=2, reward__mean=0.5)
    log.raw(b"\n\r\n{torn\n")
    log.add(step=1, attempt=2, reward__mean=0.25)
    log.raw(b'{"schema":1')
    assert entry(log, "reward/mean") == (0.25, 0.25, 0.25, 1)
    assert read(log).rows == 2


def test_text_in_a_repeated_step_is_left_out_too(log):
    log.add(step=1, reward__mean=0.5)
    for values in (b'1,"reward/mean":"high"', b'1,"x/y":"z"', b'0,"reward/mean":"low"'):
        log.raw(b'{"seq":2,"attempt":2,%b,"step":%b}\n' % (AT, values))
    assert entry(log, "reward/mean") == (0.5, 0.5, 0.5, 1)


def change(**fields):
    def apply(page):
        page |= fields

    return apply


@pytest.mark.parametrize(
    "spoil",
    [
        change(version=[0, 0]),
        change(offset=5),
        change(offset=1 << 40),
        change(mark="{other"),
        change(mark_offset=1),
        change(metrics={"reward/mean": 5}),
        change(metrics={"reward/mean": ["lower", 0.5, 0.5, 1, 2, 0.5, 1]}),
        change(extra=1),
        change(offset="x"),
        lambda page: page.clear(),
    ],
)
def test_a_page_that_does_not_fit_is_made_anew(log, spoil):
    log.add(reward__mean=0.5)
    log.add(reward__mean=0.25)
    right = read(log)
    file = log.path.with_name("summary.json")
    page = orjson.loads(file.read_bytes())
    spoil(page)
    file.write_bytes(orjson.dumps(page))
    assert read(log) == right


@pytest.mark.parametrize("text", ["", "[]", "{torn"])
def test_a_page_that_is_damaged_is_made_anew(log, text):
    log.add(reward__mean=0.5)
    right = read(log)
    log.path.with_name("summary.json").write_text(text)
    assert read(log) == right


def test_a_log_that_is_shorter_or_another_one_is_read_anew(log):
    log.add(reward__mean=0.5)
    log.add(reward__mean=0.75)
    read(log)
    lines = log.path.read_bytes().splitlines(keepends=True)
    log.path.write_bytes(lines[0])
    assert entry(log, "reward/mean") == (0.5, 0.5, 0.5, 1)
    log.path.write_bytes(lines[1])
    assert entry(log, "reward/mean") == (0.75, 0.75, 0.75, 2)


def test_a_plugin_that_turns_a_direction_makes_the_page_anew(log):
    log.add(x__y=1.0)
    log.add(x__y=2.0)
    assert read_summary(log.path, TAXONOMY).metrics["x/y"].best == 2.0
    turned = TAXONOMY.extended([MetricSpec(key="x/y", unit="", help="", direction="lower")])
    assert read_summary(log.path, turned).metrics["x/y"].best == 1.0


def test_a_log_that_was_restored_and_went_on_otherwise_is_read_anew(log):
    for reward in (0.5, 0.75, 0.25):
        log.add(reward__mean=reward)
    read(log)
    first, *others = log.path.read_bytes().splitlines(keepends=True)
    log.path.write_bytes(first + b"".join(o.replace(b"T12:", b"T13:") for o in others))
    again = [o.replace(b"0.75", b"0.95") for o in log.path.read_bytes().splitlines(keepends=True)]
    log.path.write_bytes(b"".join(again))
    assert entry(log, "reward/mean") == (0.5, 0.25, 0.95, 2)


def test_a_directory_that_cannot_be_written_costs_only_speed(log, monkeypatch):
    log.add(reward__mean=0.5)

    def refuse(*_, **__):
        raise PermissionError("read-only")

    monkeypatch.setattr(summaries, "replace_json", refuse)
    assert read(log).rows == 1
    assert stored(log).rows == 0


@pytest.mark.parametrize("piece", [1, 2_000, 1 << 20])
def test_a_long_log_is_read_some_rows_at_a_time(log, monkeypatch, piece):
    monkeypatch.setattr(log_rows, "MAX_ROWS", 7)
    monkeypatch.setattr(summaries, "_PIECE_BYTES", piece)
    for n in range(50):
        log.add(reward__mean=n, costs__cum__all=n)
    assert (read(log).rows, entry(log, "reward/mean")) == (50, (0.0, 49.0, 49.0, 50))
    assert entry(log, "costs/cum/all") == (0.0, 49.0, None, None)
    assert read(log).step == 50


KEYS = ["reward/mean", "loss/train", "x/y", "costs/all", "time/step_wall_s", "costs/cum/all"]
rows = st.tuples(
    st.sampled_from(["train", "val"]),
    st.integers(-1, 2),
    st.dictionaries(st.sampled_from(KEYS), st.integers(-9, 9)),
    st.sampled_from([{}, {}, {"reward/mean": "nan"}, {"costs/all": "inf"}]),
)


@st.composite
def logs(draw):
    """Lines of a log: attempts that begin at some step, with rows that may come several times, each
    one step further, as those of a long run do.
    """
    attempts = draw(st.lists(st.tuples(st.integers(0, 6), st.lists(rows, max_size=6)), max_size=4))
    lines = []
    for attempt, (first, written) in enumerate(attempts, 1):
        step = first
        for split, forward, metrics, nonfinite in written:
            for _ in range(draw(st.sampled_from([1, 1, 1, 4]))):
                step = max(0, step + forward)
                row = art.MetricsRow(
                    seq=len(lines) + 1,
                    attempt=attempt,
                    step=step,
                    split=split,
                    recorded_at=WHEN,
                    metrics={key: float(value) for key, value in metrics.items()},
                    nonfinite={key: text for key, text in nonfinite.items() if key not in metrics},
                )
                lines.append(row.to_line())
    return lines


@given(lines=logs())
def test_rows_in_batches_make_the_line_that_single_rows_make(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("log") / "history.jsonl"
    path.write_bytes(b"".join(lines))
    found, right = Timeline.of_log(path, TAXONOMY), Timeline(TAXONOMY)
    for row, _ in read_rows(path):
        right.add(row)
    assert found.curves() == right.curves()
    assert (found.trained, found.times()) == (right.trained, right.times())
    for name in ("rows", "first", "last", "totals", "logged", "furthest_step", "earlier_step"):
        assert getattr(found, name) == getattr(right, name)
    for key in KEYS:
        assert found.nonfinite_at(key) == right.nonfinite_at(key)


def as_art_writes(line):
    """Return a row's line without what ART's rows lack."""
    ours = ("schema", "seq", "attempt", "split")
    return orjson.dumps({k: v for k, v in orjson.loads(line).items() if k not in ours}) + b"\n"


@given(
    lines=logs(),
    cut=st.integers(0, 40),
    piece=st.sampled_from([1, 300, 1 << 26]),
    by_art=st.booleans(),
)
def test_a_page_says_what_the_current_line_has_wherever_it_was_cut(
    tmp_path_factory, lines, cut, piece, by_art
):
    path = tmp_path_factory.mktemp("log") / "history.jsonl"
    lines = [as_art_writes(line) for line in lines] if by_art else lines
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(summaries, "_PIECE_BYTES", piece)
        path.write_bytes(b"".join(lines[:cut]))
        read_summary(path, TAXONOMY)
        path.write_bytes(b"".join(lines))
        page = read_summary(path, TAXONOMY)
    line = Timeline.of_log(path, TAXONOMY)
    curves = {key: curve for key, curve in line.curves().items() if curve}
    assert {key: (e.first, e.best, e.best_step) for key, e in page.metrics.items()} == {
        key: (curve[min(curve)], *best_of(key, curve)) for key, curve in curves.items()
    }
    for key, e in page.metrics.items():
        newest = math.nan if line.nonfinite_at(key) is not None else curves[key][max(curves[key])]
        assert e.last == newest or math.isnan(e.last) is math.isnan(newest) is True
    assert (page.rows, page.highest_step) == (len(lines), line.furthest_step)


def best_of(key, curve):
    """Return the best value of a curve and its first step."""
    better = better_values(key, TAXONOMY)
    if better is None:
        return None, None
    step = min(curve, key=lambda at: (curve[at] if better == "lower" else -curve[at], at))
    return curve[step], step


def test_the_page_is_the_same_as_what_the_log_s_reader_finds(log):
    log.add(reward__mean=0.5, data__step_num_scenarios=4.0)
    (row,) = [row for row, _ in read_rows(log.path)]
    assert {k: e.last for k, e in read(log).metrics.items()} == row.metrics
    assert attrs.asdict(read(log))["rows"] == 1
