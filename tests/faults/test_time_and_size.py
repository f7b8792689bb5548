"""Clocks that jump, huge logs, tasks that are cancelled, runs that are resumed anywhere."""

from __future__ import annotations

import asyncio
import math
import time
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import art_core as art
from art_core import run as runs
from art_core.metrics.catalogue import builtin_taxonomy
from art_core.metrics.history import read_rows
from art_core.metrics.summary import read_summary


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


def test_a_log_of_ten_million_rows_opens_in_under_a_second(tmp_path):
    model = model_in(tmp_path)
    row = model.run.record("train", 1, metrics={"costs/gpu": 0.25, "reward/mean": 0.5})
    model.run.close()
    line = row.to_line()
    last = line.replace(b'"seq":1,', b'"seq":10000000,')
    # The middle is a hole: a file of that size with nothing on the disk.
    with (model.run_dir / "history.jsonl").open("r+b") as file:
        file.seek(10_000_000 * len(line))
        file.write(b"\n" + last + b'{"seq":10000001,"st')
    begun = time.perf_counter()
    again = model_in(tmp_path)
    written = again.run.record("train", 2, metrics={"costs/gpu": 0.25})
    assert time.perf_counter() - begun < 1.0
    assert (written.seq, written.metrics["costs/cum/all"]) == (10_000_001, 0.5)
    again.run.close()


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


LEAVES = ("gpu", "train/judge/correct", "train/judge/style", "train/tools", "eval/judge")
steps = st.dictionaries(st.sampled_from(LEAVES), st.floats(0, 1e6), max_size=len(LEAVES))


@settings(max_examples=20, deadline=None)
@given(attempts=st.lists(st.tuples(st.integers(0, 3), st.lists(steps, max_size=4)), max_size=4))
def test_sums_are_right_for_any_tree_any_steps_and_any_points_of_resuming(
    tmp_path_factory, attempts
):
    base = tmp_path_factory.mktemp("run")
    spent: dict[str, list[float]] = {}
    for back, written in attempts:
        run = model_in(base).run
        start = max(0, run.last_step - back)
        for step, costs in enumerate(written, start + 1):
            row = run.record("train", step, metrics={f"costs/{k}": v for k, v in costs.items()})
            for leaf, usd in costs.items():
                spent.setdefault(leaf, []).append(usd)
            sums = {leaf: math.fsum(values) for leaf, values in spent.items()}
            found = row.metrics
            for leaf, usd in sums.items():
                assert found[f"costs/cum/{leaf}"] == pytest.approx(usd)
            for parent in {p for leaf in sums for p in parents(leaf)}:
                below = [usd for leaf, usd in sums.items() if leaf.startswith(parent + "/")]
                assert found[f"costs/cum/{parent}"] == pytest.approx(math.fsum(below))
            whole = math.fsum(sums.values())
            assert found.get("costs/cum/all", 0.0) == pytest.approx(whole)
            tops = [v for k, v in found.items() if k.count("/") == 1 and k.startswith("costs/")]
            assert found.get("costs/all", 0.0) * 2 == pytest.approx(math.fsum(tops))
        run.close()


def parents(leaf):
    parts = leaf.split("/")
    return ["/".join(parts[:n]) for n in range(1, len(parts))]
