"""The metrics of a row: every key and every number arrives."""

from __future__ import annotations

from collections.abc import Sequence

from art_core.metrics.row import MetricsRow
from art_core.sinks.protocol import RunInfo
from art_core.testing.sink.base import MakeSink, ReadBack, SinkKit, row


class SinkValues(SinkKit):
    """Keys and numbers."""

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
