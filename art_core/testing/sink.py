"""What every sink does. Subclass `SinkContract`, give `make_sink`, and `read_back` where it can."""

from __future__ import annotations

import asyncio
import importlib
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest

from art_core.metrics.history import read_rows
from art_core.metrics.row import MetricsRow
from art_core.model import Model
from art_core.sinks.delivery import Delivery, DeliveryReport
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

    def write(self, rows: Sequence[MetricsRow]) -> None:
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


class SinkContract:
    """Fixtures to give: `make_sink`, a function that returns a new sink of the same destination,
    and `read_back`, which returns what the destination holds of a run, in order of `seq`, each row
    once. Where it holds no metrics, override `received`, which returns the rows' seqs alone.

    The attributes say what the destination can't hold. `factory`, `module:function`, names what
    returns the sink's spec; with it, a process that logs to the sink is killed.
    """

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
        rows: Sequence[MetricsRow],
    ) -> None:
        """Send rows through one sink, and assert that they arrived."""
        sink = make_sink()
        sink.open(run)
        sink.write(rows)
        sink.close(ended(run))
        self.check(read_back, run, rows)

    # Keys and numbers

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
        """Whatever can be printed, and is no slash, may stand in a key."""
        names = ["a.b", "a b", "a:b", "a%b", "a#b", "a?b", "a&b=c", "a@5", "a+b", "(a)", "[a]", "."]
        metrics = {f"reward/{name}": float(n) for n, name in enumerate([*names, "..", "a\\b", "'"])}
        self.sent(make_sink, read_back, run, [row(1, metrics=metrics)])

    def test_keys_that_differ_in_case_stay_apart(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """File systems and databases may fold case."""
        self.sent(make_sink, read_back, run, [row(1, reward__Exact=1.0, reward__exact=0.5)])

    def test_numbers_keep_their_size(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """Very large, very small, negative and zero."""
        numbers = [self.largest, -self.largest, 1e-30, -1e-9, 0.0, -0.0, 0.1 + 0.2, 16_777_217.0]
        metrics = {f"train/n{n}": value for n, value in enumerate(numbers)}
        self.sent(make_sink, read_back, run, [row(1, metrics=metrics)])

    def test_a_row_may_have_more_than_a_thousand_metrics(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """Some services take a thousand at once."""
        metrics = {f"reward/task_{n}": n / 8 for n in range(1_200)}
        self.sent(make_sink, read_back, run, [row(1, metrics=metrics)])

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

    # Steps and splits

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

    def test_a_step_may_be_nought_or_very_large(
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
        sink = make_sink()
        sink.open(run)
        began = time.monotonic()
        for start in range(0, len(rows), 500):
            sink.write(rows[start : start + 500])
        sink.close(ended(run))
        assert time.monotonic() - began <= self.seconds_for_10_000_rows
        self.check(read_back, run, rows)

    # Repeats, restarts, kills

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

    # Opening and closing

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

    # Manners

    def test_it_works_on_the_threads_of_the_core(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """Nothing is left undelivered."""
        rows = some_rows(5)
        self.delivers(make_sink, run, rows)
        self.check(read_back, run, rows)

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_a_write_that_raises_is_made_good(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo, when: str
    ) -> None:
        """Whether or not the rows went through, they are there once in the end."""
        rows = some_rows(4)
        trouble: dict[str, Any] = {when: ConnectionError("down")}
        self.delivers(lambda: Troubled(make_sink(), **trouble), run, rows)
        self.check(read_back, run, rows)

    def test_a_write_that_hangs_holds_up_nobody(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """Close meets its deadline; what was missing comes when the sink goes on."""
        rows = some_rows(4)
        held = threading.Event()
        history = kept(run, rows)
        spec = SinkSpec(
            name="hangs", create=lambda: Troubled(make_sink(), held=held), summary="hangs"
        )
        delivery = Delivery.start([spec], run, history)
        (follower,) = delivery.followers
        began = time.monotonic()
        report = delivery.close(0.3)["hangs"]
        assert time.monotonic() - began < 2.0
        assert report.undelivered == 4
        held.set()
        follower.close(time.monotonic() + CLOSE_SECONDS)
        assert follower.join().undelivered == 0
        self.check(read_back, run, rows)

    def test_it_prints_nothing_where_results_are_printed(
        self, make_sink: MakeSink, run: RunInfo, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """Standard output belongs to the user's program."""
        self.sent(make_sink, None, run, some_rows(2))
        assert capfd.readouterr().out == ""

    def test_it_leaves_the_working_directory_clean(
        self,
        make_sink: MakeSink,
        run: RunInfo,
        tmp_path_factory: pytest.TempPathFactory,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """What it keeps lies in the run's directory, or where the user said."""
        here = tmp_path_factory.mktemp("here")
        monkeypatch.chdir(here)
        self.sent(make_sink, None, run, some_rows(2))
        assert list(here.iterdir()) == []

    def test_it_leaves_no_thread_that_keeps_the_process_alive(
        self, make_sink: MakeSink, run: RunInfo
    ) -> None:
        """A training script ends when it ends."""
        before = set(threading.enumerate())
        self.sent(make_sink, None, run, some_rows(2))
        left = [t for t in threading.enumerate() if t not in before and not t.daemon]
        assert left == []

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


async def _resumed(model: Model) -> DeliveryReport:
    await model.log(metrics={"reward/mean": 1.0}, split="train", step=41)
    (report,) = (await model.close(CLOSE_SECONDS)).values()
    return report
