"""What a sink lives through: repeats, restarts, kills; runs that end badly, twice, or together."""

from __future__ import annotations

import asyncio
import importlib
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from art_core.metrics.history import read_rows
from art_core.model import Model
from art_core.sinks.delivery import DeliveryReport
from art_core.sinks.protocol import RunInfo
from art_core.testing.sink.kit import (
    CLOSE_SECONDS,
    MakeSink,
    ReadBack,
    SinkKit,
    ended,
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


class SinkLives(SinkKit):
    """Repeats, restarts and kills; opening and closing."""

    def test_a_batch_that_comes_again_is_kept_once(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """Delivery is at least once; `seq` tells repeats."""
        rows = some_rows(5)
        sink = make_sink()
        sink.open(run)
        sink.write(rows[:3])
        sink.write(rows)
        sink.close(ended(run))
        self.check(read_back, run, rows)

    def test_rows_that_come_again_to_a_new_sink_are_kept_once(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """A process may end between a write and its note in the cursor."""
        rows = some_rows(6)
        self.sent(make_sink, read_back, run, rows[:4])
        again = make_sink()
        again.open(attrs.evolve(run, attempt=2))
        again.write(rows[2:])
        again.close(ended(run))
        self.check(read_back, run, rows)

    def test_what_was_written_outlives_a_sink_that_was_never_closed(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """When `write` returns, the rows are no longer the core's to keep."""
        rows = some_rows(6)
        left = make_sink()
        left.open(run)
        left.write(rows[:3])
        again = make_sink()
        again.open(attrs.evolve(run, attempt=2))
        again.write(rows[3:])
        again.close(ended(run))
        left.close(ended(run))
        self.check(read_back, run, rows)

    def test_a_killed_process_is_caught_up(
        self, read_back: ReadBack | None, tmp_path: Path
    ) -> None:
        """Every row that was logged before `kill -9` arrives, by the run's next opening."""
        if self.factory is None:
            pytest.skip("the contract has no `factory` to make the sink in another process")
        module, name = self.factory.split(":")
        command = [sys.executable, "-c", _LOG_AND_DIE, self.factory, str(tmp_path)]
        killed = subprocess.run(command, check=False, capture_output=True, timeout=60)
        assert killed.returncode == -9, killed.stderr.decode()
        spec = getattr(importlib.import_module(module), name)()
        model = Model(name="agent", project="contract", base_path=tmp_path, sinks=[spec])
        report = asyncio.run(_resumed(model))
        assert (report.undelivered, report.error) == (0, None)
        history = model.run_dir / "history.jsonl"
        rows = [logged for logged, _ in read_rows(history)]
        assert len(rows) == 41
        self.check(read_back, attrs.evolve(run_in(tmp_path), run_dir=model.run_dir), rows)

    def test_it_may_be_closed_twice_and_without_rows(
        self, make_sink: MakeSink, run: RunInfo
    ) -> None:
        """A run may end before its first row; a close that raised is called again."""
        sink = make_sink()
        sink.open(run)
        sink.close(ended(run))
        sink.close(ended(run))

    def test_it_may_be_opened_again(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """An open that raised is called again."""
        rows = some_rows(3)
        sink = make_sink()
        sink.open(run)
        sink.open(run)
        sink.write(rows)
        sink.close(ended(run))
        self.check(read_back, run, rows)

    def test_a_run_may_fail(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """What it logged before is kept."""
        rows = some_rows(3)
        sink = make_sink()
        sink.open(run)
        sink.write(rows)
        sink.close(attrs.evolve(run, status="failed"))
        self.check(read_back, run, rows)

    def test_two_runs_in_one_process_stay_apart(
        self, make_sink: MakeSink, read_back: ReadBack | None, tmp_path: Path
    ) -> None:
        """Their sinks are open together."""
        runs = [run_in(tmp_path, name) for name in ("one", "two")]
        sent = [some_rows(3), some_rows(4)]
        sinks = [make_sink(), make_sink()]
        for sink, run in zip(sinks, runs, strict=True):
            sink.open(run)
        for sink, rows in zip(sinks, sent, strict=True):
            sink.write(rows)
        for sink, run, rows in zip(sinks, runs, sent, strict=True):
            sink.close(ended(run))
            self.check(read_back, run, rows)

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


async def _resumed(model: Model) -> DeliveryReport:
    await model.log(metrics={"reward/mean": 1.0}, split="train", step=41)
    (report,) = (await model.close(CLOSE_SECONDS)).values()
    return report
