"""Clocks that jump, huge logs, tasks that are cancelled, runs that are resumed anywhere."""

from __future__ import annotations

import asyncio
import math
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import art_core as art
from art_core.log.reader import LoggedRun
from art_core.log.rows import read_rows
from art_core.log.summary import read_summary
from art_core.metrics.taxonomy import builtin_taxonomy
from art_core.run import run as runs


def model_in(base, **options):
    return art.Model(name="m", project="p", base_path=base, sinks=[], **options)


def test_a_clock_that_jumps_back_changes_neither_order_nor_sums_nor_durations(
    tmp_path, monkeypatch
):
    class Clock:
        at = datetime(2026, 3, 1, tzinfo=UTC)

        @classmethod
        def now(cls, zone):
            cls.at -= timedelta(days=1)
            return cls.at

    monkeypatch.setattr(runs, "datetime", Clock)
    for _ in range(2):
        model = model_in(tmp_path)
        for _ in range(2):
            model.run.record("train", model.run.last_step + 1, metrics={"costs/gpu": 0.25})
        model.run.close()
    rows = [row for row, _ in read_rows(model.run_dir / "history.jsonl")]
    assert [row.recorded_at for row in rows] == sorted(
        (row.recorded_at for row in rows), reverse=True
    )
    assert [(row.seq, row.attempt, row.step) for row in rows] == [
        (1, 1, 1), (2, 1, 2), (3, 2, 3), (4, 2, 4),
    ]  # fmt: skip
    assert [row.metrics["costs/cum/all"] for row in rows] == [0.25, 0.5, 0.75, 1.0]
    clocks = [row.metrics["time/wall_clock_sec"] for row in rows]
    assert clocks == sorted(clocks)
    assert all(row.metrics["time/step_wall_s"] >= 0 for row in rows)
    page = read_summary(model.run_dir / "history.jsonl", builtin_taxonomy())
    assert (page.rows, page.step) == (4, 4)


def bytes_read() -> int:
    """How much this process has read from files so far."""
    try:
        return int(Path("/proc/self/io").read_text().split()[1])
    except FileNotFoundError:
        pytest.skip("this system does not count what a process reads")


def test_a_log_of_ten_million_rows_opens_without_being_read(tmp_path):
    model = model_in(tmp_path)
    row = model.run.record("train", 1, metrics={"costs/gpu": 0.25, "reward/mean": 0.5})
    model.run.close()
    line = row.to_line()
    last = line.replace(b'"seq":1,', b'"seq":10000000,')
    # The middle is a hole: a file of that size with nothing on the disk.
    with (model.run_dir / "history.jsonl").open("r+b") as file:
        file.seek(10_000_000 * len(line))
        file.write(b"\n" + last + b'{"seq":10000001,"st')
    before = bytes_read()
    again = model_in(tmp_path)
    written = again.run.record("train", 2, metrics={"costs/gpu": 0.25})
    assert bytes_read() - before < 1_000_000
    assert (written.seq, written.metrics["costs/cum/all"]) == (10_000_001, 0.5)
    again.run.close()


def test_a_log_of_ten_million_written_rows_opens_without_being_read(tmp_path, trials):
    """Not a hole: two gigabytes of rows, in full numbers; a part of that else."""
    rows = 10_000_000 if trials >= 1000 else 20_000
    model = model_in(tmp_path)
    line = model.run.record("train", 1, metrics={"costs/gpu": 0.25}).to_line()
    model.run.close()
    with (model.run_dir / "history.jsonl").open("ab") as file:
        for _ in range(rows // 20_000):
            file.write(line * 20_000)
        file.write(line.replace(b'"seq":1,', b'"seq":%d,' % (rows + 2)))
    before = bytes_read()
    again = model_in(tmp_path)
    written = again.run.record("train", 2, metrics={"costs/gpu": 0.25})
    assert bytes_read() - before < 1_000_000
    assert (written.seq, written.metrics["costs/cum/all"]) == (rows + 3, 0.5)
    again.run.close()
    (model.run_dir / "history.jsonl").unlink()


def test_a_run_resumed_from_an_older_checkpoint_keeps_the_money_and_takes_the_new_curve(
    tmp_path, assert_right
):
    for attempt, steps in ((1, (1, 2, 3, 4)), (2, (3, 4, 5)), (3, (4,))):
        model = model_in(tmp_path)
        for step in steps:
            metrics = {"costs/gpu": 0.25, "reward/mean": attempt + step / 8}
            model.run.record("train", step, metrics=metrics)
        model.run.close()
    rows = assert_right(model.run_dir, range(1, 9))
    assert rows[-1].metrics["costs/cum/all"] == 0.25 * 8
    reading = LoggedRun(model.run_dir).timeline()
    assert reading.curve("reward/mean") == {1: 1.125, 2: 1.25, 3: 2.375, 4: 3.5}
    assert reading.totals["costs/cum/all"] == 2.0
    # The best is that of the newest attempts; what an abandoned step had is gone from it.
    best = read_summary(model.run_dir / "history.jsonl", builtin_taxonomy()).metrics["reward/mean"]
    assert (best.best, best.best_step) == (3.5, 4)


async def test_a_log_that_is_cancelled_is_whole_or_did_not_happen(tmp_path):
    model = model_in(tmp_path)
    builder = model.metrics_builder("train")

    async def log(step):
        builder.add_cost("train/judge", 0.25)
        group = art.TrajectoryGroup([art.Trajectory(reward=1.0), art.Trajectory(reward=0.0)])
        await asyncio.sleep(0)
        await model.log([group], split="train", step=step)

    for turns in range(6):
        task = asyncio.create_task(log(turns))
        for _ in range(turns % 3):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await model.log(metrics={"reward/mean": 0.5}, split="train", step=9)
    rows = [row for row, _ in read_rows(model.run_dir / "history.jsonl")]
    assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
    # A task cancelled before it began added nothing; all others' money is in a row, once.
    assert rows[-1].metrics["costs/cum/train/judge"] == 0.25 * 4
    assert rows[-1].metrics["data/cum/num_trajectories"] == 2.0 * (len(rows) - 1)
    await model.close()


async def test_a_train_step_that_is_cancelled_while_it_asks_for_its_step_keeps_its_costs(
    tmp_path, monkeypatch
):
    model = model_in(tmp_path)
    model.metrics_builder("train").add_cost("train/judge", 0.25)
    asked = asyncio.Event()

    async def slow_step(self):
        asked.set()
        await asyncio.sleep(60)

    monkeypatch.setattr(art.Model, "get_step", slow_step)
    task = asyncio.create_task(model.log(metrics={"reward/mean": 0.5}, split="train"))
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    monkeypatch.undo()
    assert model.run.last_step == 0
    row = await model.log(metrics={"reward/mean": 0.5}, split="train", step=1)
    assert (row.seq, row.metrics["costs/cum/all"]) == (1, 0.25)
    await model.close()


NAMES = st.sampled_from(["judge", "style", "tools", "größe", "a b"])
paths = st.lists(NAMES, min_size=1, max_size=3).map(lambda parts: "train/" + "/".join(parts))


def leaves_only(paths):
    """Keep the paths that lie below no other one: what is a leaf can't be a parent."""
    return [p for p in paths if not any(p.startswith(f"{other}/") for other in paths)]


trees = st.lists(paths, unique=True, max_size=6).map(lambda some: ["gpu", *leaves_only(some)])


@settings(max_examples=int(os.environ.get("FAULT_TRIALS") or 40) // 2)
@given(data=st.data())
def test_sums_are_right_for_any_tree_any_steps_and_any_points_of_resuming(tmp_path_factory, data):
    base, tree = tmp_path_factory.mktemp("run"), data.draw(trees)
    steps = st.dictionaries(st.sampled_from(tree), st.floats(0, 1e6), max_size=len(tree))
    attempts = st.lists(st.tuples(st.integers(0, 3), st.lists(steps, max_size=4)), max_size=4)
    spent: dict[str, list[float]] = {}
    for back, written in data.draw(attempts):
        run = model_in(base).run
        start = max(0, run.last_step - back)
        for step, costs in enumerate(written, start + 1):
            row = run.record("train", step, metrics={f"costs/{k}": v for k, v in costs.items()})
            for leaf, usd in costs.items():
                spent.setdefault(leaf, []).append(usd)
            assert_adds_up(row.metrics, costs, {k: math.fsum(v) for k, v in spent.items()})
        run.close()


def assert_adds_up(found, step, run):
    """Parents are the sums of their leaves, `all` that of the top; in the step and in the run."""
    for prefix, leaves in (("costs/", step), ("costs/cum/", run)):
        for leaf, usd in leaves.items():
            assert found[prefix + leaf] == pytest.approx(usd)
        for parent in {p for leaf in leaves for p in parents(leaf)}:
            below = [usd for leaf, usd in leaves.items() if leaf.startswith(parent + "/")]
            assert found[prefix + parent] == pytest.approx(math.fsum(below))
        assert found.get(f"{prefix}all", 0.0) == pytest.approx(math.fsum(leaves.values()))
        tops = {leaf.partition("/")[0] for leaf in leaves}
        assert found.get(f"{prefix}all", 0.0) == pytest.approx(
            math.fsum(found[prefix + top] for top in tops)
        )


def parents(leaf):
    parts = leaf.split("/")
    return ["/".join(parts[:n]) for n in range(1, len(parts))]
