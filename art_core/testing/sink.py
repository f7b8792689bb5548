"""What every sink does. Subclass `SinkContract`, give `make_sink`, and `received` where it can."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from art_core.metrics.row import MetricsRow
from art_core.sinks.delivery import Delivery
from art_core.sinks.protocol import RunInfo, Sink, SinkSpec

CLOSE_SECONDS = 30.0


def row(seq: int, split: str = "train", **metrics: float) -> MetricsRow:
    """Return a row with a few metrics, `section__name=value` each."""
    return MetricsRow(
        seq=seq,
        attempt=1,
        step=seq,
        split=split,
        recorded_at=datetime(2026, 1, 1, tzinfo=UTC),
        metrics={key.replace("__", "/"): value for key, value in metrics.items()},
    )


ROWS = (
    row(1, reward__mean=0.5, loss__train=-1e-9, costs__cum__all=0.0125),
    row(2, "val", val__reward=1.0),
    row(3),
    row(4, reward__mean=1e308, train__own_metric=-0.0),
)


class SinkContract:
    """Fixture to give: `make_sink`, a function that returns a new sink of the same destination."""

    @pytest.fixture
    def make_sink(self) -> Callable[[], Sink]:
        """Return the sink's class, or a function that makes one."""
        raise AssertionError("give the fixture make_sink")

    @pytest.fixture
    def run(self, tmp_path: Path) -> RunInfo:
        """Return the run that the rows belong to."""
        return RunInfo(project="contract", name="agent", run_dir=tmp_path, base_model="base")

    def received(self, run: RunInfo) -> Sequence[int] | None:
        """Return the seqs that the destination holds of a run; None when it can't be read back."""
        del run
        return None

    def test_it_takes_rows_of_every_kind(self, make_sink: Callable[[], Sink], run: RunInfo) -> None:
        """Train and val rows, rows without metrics, very large and very small numbers."""
        sink = make_sink()
        sink.open(run)
        sink.write(ROWS[:2])
        sink.write(ROWS[2:])
        sink.close(run)
        assert self.received(run) in (None, [1, 2, 3, 4])

    def test_rows_that_come_again_are_kept_once(
        self, make_sink: Callable[[], Sink], run: RunInfo
    ) -> None:
        """Delivery is at least once: a batch may be repeated, also after a restart."""
        sink = make_sink()
        sink.open(run)
        sink.write(ROWS)
        sink.write(ROWS)
        sink.close(run)
        again = make_sink()
        again.open(run)
        again.write(ROWS)
        again.close(run)
        assert self.received(run) in (None, [1, 2, 3, 4])

    def test_it_may_be_closed_twice_and_without_rows(
        self, make_sink: Callable[[], Sink], run: RunInfo
    ) -> None:
        """A run may end before its first row; a close that raised is called again."""
        sink = make_sink()
        sink.open(run)
        sink.close(run)
        sink.close(run)

    def test_the_core_delivers_to_it_from_a_thread(
        self, make_sink: Callable[[], Sink], run: RunInfo
    ) -> None:
        """The sink works on the thread that the core gives it, and nothing is left undelivered."""
        history = run.run_dir / "history.jsonl"
        history.write_bytes(b"".join(row.to_line() for row in ROWS))
        spec = SinkSpec(name="contract", create=make_sink, summary="")
        report = Delivery.start([spec], run, history).close(CLOSE_SECONDS)["contract"]
        assert (report.undelivered, report.error) == (0, None)
        assert self.received(run) in (None, [1, 2, 3, 4])
