"""The base of the contract: fixtures and settings, rows and runs, and the comparison."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ClassVar

import attrs
import pytest

from art_core.log.history import MetricsRow
from art_core.log.rundir import history_file
from art_core.sinks.delivery import Delivery
from art_core.sinks.protocol import RunInfo, Sink, SinkSpec
from art_core.testing.sink.doubles import SinkThread, disk_full_and_network_down
from art_core.testing.statements import Contract, Setting

SINK_NAME = "contract"
_START = datetime(2026, 1, 1, tzinfo=UTC)

Received = tuple[int, str | None, Mapping[str, float]]
"""A row as the destination holds it: step, split (None where it keeps none), metrics."""

MakeSink = Callable[[], Sink]
ReadBack = Callable[[RunInfo], Sequence[Received]]
Outage = Callable[[], AbstractContextManager[None]]


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


class SinkContractBase(Contract):
    """The fixtures and settings of `SinkContract`, and its comparison."""

    settings: ClassVar[tuple[Setting, ...]] = (
        Setting(
            "cannot_be_read_back",
            "the destination can't be read from a test. Rows are written, and the tests that "
            "compare them are skipped",
            "rows were written, and what arrived was not compared",
        ),
        Setting(
            "keeps_split",
            "False if the destination does not keep a row's split; `read_back` then returns None "
            "as the split",
            "splits were not compared",
        ),
        Setting(
            "keeps_empty_rows",
            "False if rows without metrics are not kept; `read_back` then leaves them out",
            "rows without metrics were not expected",
        ),
        Setting(
            "relative_error",
            "how far a number may be off, relative to its size. For a destination that keeps "
            "32-bit floats: `1e-7`",
            "numbers may be off by this share of their size",
        ),
        Setting(
            "largest",
            "the largest number that the destination keeps. For 32-bit floats: `3e38`",
            "larger numbers were not written",
        ),
        Setting("seconds_for_10_000_rows", "the time limit for writing and closing 10,000 rows"),
        Setting(
            "seconds_per_call",
            "the time limit of each call of `open`, `write` and `close` in a test, and of the "
            "core's delivery of some rows",
        ),
        Setting(
            "factory",
            "`module:function`, which returns the sink's spec. With it, a process that logs to the "
            "sink is killed; without it, the kill is imitated inside the process",
        ),
    )
    cannot_be_read_back: bool = False
    keeps_split: bool = True
    keeps_empty_rows: bool = True
    relative_error: float = 0.0
    largest: float = 1e308
    seconds_for_10_000_rows: float = 60.0
    seconds_per_call: float = 60.0
    factory: str | None = None

    @pytest.fixture
    def make_sink(self) -> MakeSink:
        """Return the sink's class, or a function that makes one."""
        raise AssertionError("give the fixture make_sink")

    @pytest.fixture
    def read_back(self) -> ReadBack | None:
        """Return a function that reads a run's rows from the destination."""
        return None

    @pytest.fixture
    def destination_down(self) -> Outage:
        """Return a function whose context manager makes the destination refuse rows.

        By default files can't grow and no network connection works in this process.
        """
        return disk_full_and_network_down

    def received(self, run: RunInfo) -> Sequence[int] | None:
        """Return the seqs that the destination holds of a run, where it keeps no metrics."""
        del run
        return None

    @pytest.fixture
    def run(self, tmp_path: Path) -> RunInfo:
        """Return the run that the rows belong to."""
        return run_in(tmp_path)

    @contextmanager
    def opened(self, make_sink: MakeSink, run: RunInfo) -> Iterator[SinkThread]:
        """Make a sink and open it, on a thread that ends with the block."""
        with SinkThread.running(make_sink, self.seconds_per_call) as sink:
            sink.open(run)
            yield sink

    def check(self, read_back: ReadBack | None, run: RunInfo, rows: Sequence[MetricsRow]) -> None:
        """Assert that the destination holds these rows, key by key.

        Skips the rest of the test if the author has stated that nothing can be read back.
        """
        wanted = [r for r in rows if r.metrics or self.keeps_empty_rows]
        if read_back is not None:
            self._compare(read_back(run), wanted)
            return
        seqs = self.received(run)
        if seqs is not None:
            self.state("received is given instead of read_back: metrics were not compared")
            assert list(seqs) == [r.seq for r in wanted]
            return
        if not self.cannot_be_read_back:
            pytest.fail(
                "the test can't see which rows arrived. Give the fixture read_back (or the method "
                "received), or state cannot_be_read_back = True in the class."
            )
        pytest.skip("cannot_be_read_back is stated: rows were written and not compared")

    def _compare(self, got: Sequence[Received], wanted: Sequence[MetricsRow]) -> None:
        assert [step for step, _, _ in got] == [r.step for r in wanted]
        splits = [r.split if self.keeps_split else None for r in wanted]
        assert [split for _, split, _ in got] == splits
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
        self.written(make_sink, run, rows)
        self.check(read_back, run, rows)

    def written(self, make_sink: MakeSink, run: RunInfo, rows: list[MetricsRow]) -> None:
        """Send rows through one sink."""
        with self.opened(make_sink, run) as sink:
            sink.write(rows)
            sink.close(ended(run))

    def delivers(self, make_sink: MakeSink, run: RunInfo, rows: Sequence[MetricsRow]) -> RunInfo:
        """Have the core deliver rows from the run's log, and assert that it did.

        Returns the run as the sink got it: with the sink's name.
        """
        spec = SinkSpec(name=SINK_NAME, create=make_sink, summary="under test")
        delivery = Delivery.start([spec], run, write_log(run, rows))
        report = delivery.close(self.seconds_per_call)[SINK_NAME]
        assert (report.undelivered, report.error) == (0, None)
        return attrs.evolve(run, sink=spec.name)


def run_in(directory: Path, name: str = "agent") -> RunInfo:
    """Return a run whose directory lies where the core puts it."""
    run_dir = directory / "contract" / "models" / name
    run_dir.mkdir(parents=True, exist_ok=True)
    return RunInfo(project="contract", name=name, run_dir=run_dir, base_model="base")


def ended(run: RunInfo) -> RunInfo:
    """Return the run as `Sink.close` gets it when the run ended well."""
    return attrs.evolve(run, status="finished")


def write_log(run: RunInfo, rows: Sequence[MetricsRow]) -> Path:
    """Write the run's log and return its path."""
    history = history_file(run.run_dir)
    history.write_bytes(b"".join(row.to_line() for row in rows))
    return history
