"""The life of a sink: repeats, restarts and kills; opening and closing; several runs."""

from __future__ import annotations

import asyncio
import importlib
import subprocess
import sys
from pathlib import Path

import attrs

from art_core.log.reader import LoggedRun
from art_core.model.model import Model
from art_core.sinks.delivery import DeliveryReport
from art_core.sinks.protocol import RunInfo
from art_core.testing.sink.base import (
    SINK_NAME,
    MakeSink,
    ReadBack,
    SinkContractBase,
    ended,
    row,
    run_in,
    some_rows,
)

_LOG_AND_DIE = """
import asyncio, importlib, os, signal, sys
import art_core as art
module, name = sys.argv[1].split(":")
spec = getattr(importlib.import_module(module), name)()
async def main():
    model = art.Model(name="agent", project="contract", base_path=sys.argv[2], sinks=[spec])
    for step in range(1, 41):
        await model.log(metrics={"reward/mean": step / 8}, split="train", step=step)
        await asyncio.sleep(0.03)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


class SinkLifecycle(SinkContractBase):
    """Repeats, restarts and kills; opening and closing."""

    def test_a_batch_that_comes_again_is_kept_once(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """Delivery is at least once; `seq` shows repeats."""
        rows = some_rows(5)
        with self.opened(make_sink, run) as sink:
            sink.write(rows[:3])
            sink.write(rows)
            sink.close(ended(run))
        self.check(read_back, run, rows)

    def test_rows_that_come_again_to_a_new_sink_are_kept_once(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """A process may end between a write and its note in the cursor."""
        rows = some_rows(6)
        self.written(make_sink, run, rows[:4])
        with self.opened(make_sink, attrs.evolve(run, attempt=2)) as again:
            again.write(rows[2:])
            again.close(ended(run))
        self.check(read_back, run, rows)

    def test_a_resumed_run_goes_on_after_its_rows(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """The rows of the process before stay, and those of this one follow."""
        rows = some_rows(6)
        self.written(make_sink, run, rows[:3])
        with self.opened(make_sink, attrs.evolve(run, attempt=2)) as again:
            again.write(rows[3:])
            again.close(ended(run))
        self.check(read_back, run, rows)

    def test_rows_are_kept_when_write_returns(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """They are there although the sink that wrote them is never closed."""
        rows = some_rows(6)
        with self.opened(make_sink, run) as left:
            left.write(rows[:3])
            with self.opened(make_sink, attrs.evolve(run, attempt=2)) as again:
                again.write(rows[3:])
                again.close(ended(run))
            left.close(ended(run))
        self.check(read_back, run, rows)

    def test_every_row_is_there_when_close_returns(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """The process may end right after it: nothing is written later."""
        self.sent(make_sink, read_back, run, some_rows(40))

    def test_a_killed_process_is_caught_up(
        self, make_sink: MakeSink, read_back: ReadBack | None, tmp_path: Path
    ) -> None:
        """Every row that was logged before `kill -9` arrives when the run is opened again.

        Without `factory` no process is killed: a sink that is left open imitates it.
        """
        if self.factory is None:
            self.state("factory is not given: no process was killed, an open sink was left instead")
            self._leave_open(make_sink, read_back, run_in(tmp_path))
            return
        module, name = self.factory.split(":")
        command = [sys.executable, "-c", _LOG_AND_DIE, self.factory, str(tmp_path)]
        killed = subprocess.run(command, check=False, capture_output=True, timeout=60)
        assert killed.returncode == -9, killed.stderr.decode()
        spec = getattr(importlib.import_module(module), name)()
        model = Model(name="agent", project="contract", base_path=tmp_path, sinks=[spec])
        report = asyncio.run(_resumed(model, self.seconds_per_call))
        assert (report.undelivered, report.error) == (0, None)
        rows = list(LoggedRun(model.run_dir).rows())
        assert len(rows) == 41
        self.check(read_back, attrs.evolve(run_in(tmp_path), run_dir=model.run_dir), rows)

    def _leave_open(self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo) -> None:
        rows, named = some_rows(6), attrs.evolve(run, sink=SINK_NAME)
        with self.opened(make_sink, named) as left:
            left.write(rows[:4])
            given = self.delivers(make_sink, attrs.evolve(named, attempt=2), rows)
        self.check(read_back, given, rows)

    def test_it_may_be_closed_twice_and_without_rows(
        self, make_sink: MakeSink, run: RunInfo
    ) -> None:
        """A run may end before its first row; a close that raised is called again."""
        with self.opened(make_sink, run) as sink:
            sink.close(ended(run))
            sink.close(ended(run))

    def test_it_may_be_opened_again(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """An open that raised is called again."""
        rows = some_rows(3)
        with self.opened(make_sink, run) as sink:
            sink.open(run)
            sink.write(rows)
            sink.close(ended(run))
        self.check(read_back, run, rows)

    def test_a_run_may_fail(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """The rows from before are kept."""
        rows = some_rows(3)
        with self.opened(make_sink, run) as sink:
            sink.write(rows)
            sink.close(attrs.evolve(run, status="failed", reason="ValueError: no reward"))
        self.check(read_back, run, rows)

    def test_two_runs_in_one_process_stay_apart(
        self, make_sink: MakeSink, read_back: ReadBack | None, tmp_path: Path
    ) -> None:
        """Their sinks are open together, and their rows have the same seqs."""
        one, two = (run_in(tmp_path, name) for name in ("one", "two"))
        rows_of_one, rows_of_two = some_rows(3), [row(n, loss__train=n / 8) for n in range(1, 5)]
        with self.opened(make_sink, one) as first, self.opened(make_sink, two) as second:
            first.write(rows_of_one)
            second.write(rows_of_two)
            first.close(ended(one))
            second.close(ended(two))
        self.check(read_back, one, rows_of_one)
        self.check(read_back, two, rows_of_two)

    def test_a_run_leaves_nothing_behind_for_the_next(
        self, make_sink: MakeSink, read_back: ReadBack | None, tmp_path: Path
    ) -> None:
        """Two runs follow each other in one process, with the same seqs."""
        rows = some_rows(3)
        self.written(make_sink, run_in(tmp_path, "one"), rows)
        self.sent(make_sink, read_back, run_in(tmp_path, "two"), rows)

    def test_names_and_config_may_be_anything_that_a_directory_and_json_take(
        self, make_sink: MakeSink, read_back: ReadBack | None, tmp_path: Path
    ) -> None:
        """Spaces, commas and letters of any alphabet in names; nested lists and long texts."""
        run = attrs.evolve(
            run_in(tmp_path, "агент №1, beta's"),
            project="проект a",
            config={"lr": 1e-5, "layers": [1, 2], "deep": {"er": None}, "prompt": "x" * 10_000},
        )
        self.sent(make_sink, read_back, run, some_rows(2))


async def _resumed(model: Model, seconds: float) -> DeliveryReport:
    await model.log(metrics={"reward/mean": 1.0}, split="train", step=41)
    (report,) = (await model.close(seconds)).values()
    return report
