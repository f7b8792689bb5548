"""What every part of the contract uses: rows, runs, and how what a sink got is compared."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs
import pytest

from art_core.metrics.row import MetricsRow
from art_core.sinks.delivery import Delivery
from art_core.sinks.protocol import RunInfo, Sink, SinkSpec

CLOSE_SECONDS = 30.0
_START = datetime(2026, 1, 1, tzinfo=UTC)

Received = tuple[int, str | None, Mapping[str, float]]
"""What a destination holds of a row: step, split (None where it keeps none), metrics."""

MakeSink = Callable[[], Sink]
ReadBack = Callable[[RunInfo], Sequence[Received]]


def row(
    seq: int,
    split: str = "train",
    step: int | None = None,
    metrics: Mapping[str, float] | None = None,
    **more: float,
) -> MetricsRow:
    """Return a row with metrics; in a keyword, `__` stands for a slash."""
    return MetricsRow(
        seq=seq,
        attempt=1,
        step=seq if step is None else step,
        split=split,
        recorded_at=_START + timedelta(seconds=seq),
        metrics={**(metrics or {}), **{k.replace("__", "/"): v for k, v in more.items()}},
    )


def some_rows(count: int, first: int = 1) -> list[MetricsRow]:
    """Return train rows with two metrics each."""
    numbers = range(first, first + count)
    return [row(n, reward__mean=n / 8, costs__cum__all=n / 4) for n in numbers]


@attrs.define
class Troubled:
    """A sink in front of another one that fails or hangs at its first write, before or after the
    rows went through.
    """

    sink: Sink
    before: BaseException | None = None
    after: BaseException | None = None
    held: threading.Event | None = None

    def open(self, run: RunInfo) -> None:
        """Open the sink behind."""
        self.sink.open(run)

    def write(self, rows: list[MetricsRow]) -> None:
        """Write to the sink behind, with this one's trouble, once."""
        before, after, self.before, self.after = self.before, self.after, None, None
        if self.held is not None:
            self.held.wait(CLOSE_SECONDS)
        if before is not None:
            raise before
        self.sink.write(rows)
        if after is not None:
            raise after

    def close(self, run: RunInfo) -> None:
        """Close the sink behind."""
        self.sink.close(run)


class SinkKit:
    """The fixtures and attributes of `SinkContract`, and its comparison."""

    keeps_split = True
    keeps_empty_rows = True
    relative_error = 0.0
    largest = 1e308
    seconds_for_10_000_rows = 60.0
    factory: str | None = None

    @pytest.fixture
    def make_sink(self) -> MakeSink:
        """Return the sink's class, or a function that makes one."""
        raise AssertionError("give the fixture make_sink")

    @pytest.fixture
    def read_back(self) -> ReadBack | None:
        """Return a function that reads a run's rows; None, and less is tested, when they can't
        be.
        """
        return None

    def received(self, run: RunInfo) -> Sequence[int] | None:
        """Return the seqs that the destination holds of a run; None when they can't be read."""
        del run
        return None

    @pytest.fixture
    def run(self, tmp_path: Path) -> RunInfo:
        """Return the run that the rows belong to."""
        return run_in(tmp_path)

    def check(self, read_back: ReadBack | None, run: RunInfo, rows: Sequence[MetricsRow]) -> None:
        """Assert that the destination holds these rows, key by key."""
        wanted = [r for r in rows if r.metrics or self.keeps_empty_rows]
        if read_back is None:
            assert self.received(run) in (None, [r.seq for r in wanted])
            return
        got = read_back(run)
        assert [step for step, _, _ in got] == [r.step for r in wanted]
        assert [split for _, split, _ in got] == [
            r.split if self.keeps_split else None for r in wanted
        ]
        for (_, _, metrics), sent in zip(got, wanted, strict=True):
            assert set(metrics) == set(sent.metrics)
            for key, value in sent.metrics.items():
                assert math.isclose(metrics[key], value, rel_tol=self.relative_error), key

    def sent(
        self,
        make_sink: MakeSink,
        read_back: ReadBack | None,
        run: RunInfo,
        rows: list[MetricsRow],
    ) -> None:
        """Send rows through one sink, and assert that they arrived."""
        sink = make_sink()
        sink.open(run)
        sink.write(rows)
        sink.close(ended(run))
        self.check(read_back, run, rows)

    def delivers(self, make_sink: MakeSink, run: RunInfo, rows: Sequence[MetricsRow]) -> None:
        """Have the core deliver rows from the run's log, and assert that it did."""
        spec = SinkSpec(name="contract", create=make_sink, summary="under test")
        delivery = Delivery.start([spec], run, kept(run, rows))
        report = delivery.close(CLOSE_SECONDS)["contract"]
        assert (report.undelivered, report.error) == (0, None)


def run_in(directory: Path, name: str = "agent") -> RunInfo:
    """Return a run whose directory lies as the core lays it."""
    run_dir = directory / "contract" / "models" / name
    run_dir.mkdir(parents=True, exist_ok=True)
    return RunInfo(project="contract", name=name, run_dir=run_dir, base_model="base")


def ended(run: RunInfo) -> RunInfo:
    """Return the run as `Sink.close` is told of one that ended well."""
    return attrs.evolve(run, status="finished")


def kept(run: RunInfo, rows: Sequence[MetricsRow]) -> Path:
    """Write the run's log and return its path."""
    history = run.run_dir / "history.jsonl"
    history.write_bytes(b"".join(row.to_line() for row in rows))
    return history
