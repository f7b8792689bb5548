"""Rows of a run: each arrives once, in order, at its step and split, with its keys and numbers."""

from __future__ import annotations

import time
from collections.abc import Sequence

from art_core.log.history import MetricsRow
from art_core.sinks.protocol import RunInfo
from art_core.testing.sink.base import MakeSink, ReadBack, SinkContractBase, ended, row, some_rows


class SinkRows(SinkContractBase):
    """Order, steps and splits; keys and numbers."""

    def test_every_row_arrives_once_and_in_order(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """The first, the last and all between, in batches of one and of several."""
        rows = some_rows(7)
        with self.opened(make_sink, run) as sink:
            for batch in (rows[:1], rows[1:3], rows[3:]):
                sink.write(batch)
            sink.close(ended(run))
        self.check(read_back, run, rows)

    def test_rows_of_two_splits_at_one_step_stay_apart(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """Training and evaluation of a step are two rows, also with equal keys."""
        rows = [
            row(1, step=3, reward__mean=0.5, costs__cum__all=1.0),
            row(2, "val", step=3, val__reward=0.25, costs__cum__all=1.5),
            row(3, "test", step=3, test__reward=0.125, costs__cum__all=2.0),
        ]
        self.sent(make_sink, read_back, run, rows)

    def test_rows_are_left_as_they_are(self, make_sink: MakeSink, run: RunInfo) -> None:
        """Other sinks get the same rows."""
        rows, same = some_rows(3), some_rows(3)
        self.written(make_sink, run, rows)
        assert rows == same

    def test_a_row_may_have_no_metrics(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """The next one still arrives."""
        self.sent(make_sink, read_back, run, [row(1), row(2, reward__mean=0.5)])

    def test_a_key_may_be_new_late_and_another_be_missing(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """Columns are not known when a run begins."""
        rows = [*some_rows(30), row(31, loss__own=1.0), row(32, "val", val__late=0.5)]
        self.sent(make_sink, read_back, run, rows)

    def test_evaluations_come_out_of_order(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """An evaluation of step 2 may end when training is at step 6."""
        rows = [
            row(1, step=5, reward__mean=0.5),
            row(2, step=6, reward__mean=0.625),
            row(3, "val", step=2, val__reward=0.25),
            row(4, "val", step=1, val__reward=0.125),
            row(5, step=7, reward__mean=0.75),
        ]
        self.sent(make_sink, read_back, run, rows)

    def test_a_step_may_have_several_rows(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """A run resumed from an older checkpoint takes steps again; a step may be logged twice."""
        rows = [
            row(1, step=3, reward__mean=0.5),
            row(2, "val", step=3, val__reward=0.5),
            row(3, step=3, reward__mean=0.75, loss__train=0.25),
            row(4, step=3, reward__mean=0.5),
        ]
        self.sent(make_sink, read_back, run, rows)

    def test_a_step_may_be_zero_or_very_large(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """Beyond 32 bits."""
        rows = [row(1, step=0, reward__mean=0.5), row(2, step=5_000_000_000, reward__mean=1.0)]
        self.sent(make_sink, read_back, run, rows)

    def test_a_split_of_the_users_own_arrives(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """Its bare names make a section that no catalogue has."""
        self.sent(make_sink, read_back, run, [row(1, "dev-hard", metrics={"dev-hard/reward": 0.5})])

    def test_ten_thousand_rows_arrive(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """In the batches of a catch-up, within `seconds_for_10_000_rows`."""
        rows = some_rows(10_000)
        with self.opened(make_sink, run) as sink:
            began = time.monotonic()
            for start in range(0, len(rows), 500):
                sink.write(rows[start : start + 500])
            sink.close(ended(run))
            assert time.monotonic() - began <= self.seconds_for_10_000_rows
        self.check(read_back, run, rows)

    def test_every_metric_arrives_under_its_key(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """Several sections, splits and units in one batch."""
        rows = [
            row(1, reward__mean=0.5, loss__train=-1e-9, costs__cum__all=0.0125),
            row(2, "val", val__reward=1.0),
            row(3, reward__mean=0.625, train__own_metric=-0.0),
        ]
        self.sent(make_sink, read_back, run, rows)

    def test_a_key_may_begin_with_another(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """Cost trees do: `costs/train` is the sum of `costs/train/judge` and its siblings."""
        metrics = {"costs/train": 0.75, "costs/train/judge": 0.5, "costs/train/judge/retry": 0.25}
        self.sent(make_sink, read_back, run, [row(1, metrics=metrics)])

    def test_a_key_may_begin_an_earlier_one(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """The child may be seen before its parent."""
        rows = [row(1, costs__eval__judge=0.5), row(2, costs__eval=0.5)]
        self.sent(make_sink, read_back, run, rows)

    def test_keys_hold_any_letters(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """Users name metrics in their own language."""
        metrics = {"reward/größe": 1.0, "reward/正解率": 0.5, "reward/доля": 0.25, "val/🎯": 0.125}
        self.sent(make_sink, read_back, run, [row(1, metrics=metrics)])

    def test_keys_hold_punctuation(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """A key may have all printable characters; a slash separates its parts."""
        names = ["a.b", "a b", "a:b", "a%b", "a#b", "a?b", "a&b=c", "a@5", "a+b", "(a)", "[a]", "."]
        metrics = {f"reward/{name}": float(n) for n, name in enumerate([*names, "..", "a\\b", "'"])}
        self.sent(make_sink, read_back, run, [row(1, metrics=metrics)])

    def test_keys_that_differ_in_case_stay_apart(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """File systems and databases may fold case."""
        self.sent(make_sink, read_back, run, [row(1, reward__Exact=1.0, reward__exact=0.5)])

    def test_large_numbers_arrive(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """Up to the setting `largest`, and integers that 32-bit floats round."""
        numbers = [self.largest, -self.largest, self.largest / 8, 16_777_217.0]
        self.sent(make_sink, read_back, run, [self.numbered(numbers)])

    def test_small_numbers_arrive(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """They are not written as zero."""
        self.sent(make_sink, read_back, run, [self.numbered([1e-30, -1e-30, 1e-9, 1e-5])])

    def test_negative_numbers_and_zeros_arrive(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """A value of zero is a value, and a negative reward is one too."""
        self.sent(make_sink, read_back, run, [self.numbered([-1.0, -0.125, 0.0, -0.0])])

    def test_numbers_are_not_rounded(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """All digits of a 64-bit float arrive, or as many as `relative_error` allows."""
        numbers = [0.1 + 0.2, 1 / 3, 0.123456789, 1234.567890123]
        self.sent(make_sink, read_back, run, [self.numbered(numbers)])

    def numbered(self, numbers: Sequence[float]) -> MetricsRow:
        """Return a row with these numbers."""
        return row(1, metrics={f"train/n{n}": value for n, value in enumerate(numbers)})

    def test_a_row_may_have_more_than_a_thousand_metrics(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """Some services take a thousand at once."""
        metrics = {f"reward/task_{n}": n / 8 for n in range(1_200)}
        self.sent(make_sink, read_back, run, [row(1, metrics=metrics)])
