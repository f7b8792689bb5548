"""The rows of a run: each arrives once, in order, at its step and split."""

from __future__ import annotations

import time

from art_core.sinks.protocol import RunInfo
from art_core.testing.sink.base import MakeSink, ReadBack, SinkKit, ended, row, some_rows


class SinkRows(SinkKit):
    """Order, steps and splits."""

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
