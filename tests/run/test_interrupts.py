"""Ctrl-C at every point of `Run.record` where Python looks for signals."""

import subprocess
import sys

import pytest

import art_core as art
from art_core.log.rows import read_rows


class Interrupt:
    """Raises KeyboardInterrupt at the nth call, or end of a C function's call, within art_core."""

    def __init__(self, at):
        self.left = at

    def __call__(self, frame, event, arg):
        if "art_core" not in frame.f_code.co_filename or event not in ("call", "c_return"):
            return
        self.left -= 1
        if self.left == 0:
            sys.setprofile(None)
            raise KeyboardInterrupt


def interrupted(run, at, groups):
    """Record a row, interrupted at a point; return whether the row has fewer points than that."""
    sys.setprofile(Interrupt(at))
    try:
        run.record("train", at, groups=groups, metrics={"loss/train": 1.0})
    except KeyboardInterrupt:
        return False
    finally:
        sys.setprofile(None)
    return True


def test_ctrl_c_at_any_point_of_a_row_loses_no_money_and_counts_nothing_twice(tmp_path):
    model = art.Model(name="m", project="p", base_path=tmp_path, sinks=[], plugins=art.Plugins())
    run, builder, at, done = model.run, model.metrics_builder("eval"), 0, False
    while not done:
        at += 1
        attempts = [art.Trajectory(reward=reward) for reward in (0.0, 1.0)]
        groups = [art.TrajectoryGroup(attempts, metadata={"scenario_id": f"run-{at}"})]
        builder.add_cost("eval/judge", 0.25)
        builder.add_data(scenario_ids=[f"said-{at}"])
        builder.add_gpu_time(art.GpuTime(device="card", seconds=1800, usd_per_hour=1.0))
        done = interrupted(run, at, groups)
        run.record("train", at, groups=groups)
        totals = run.totals.totals
        assert totals["costs/cum/eval/judge"] == 0.25 * at, f"at point {at}"
        assert totals["costs/cum/gpu"] == 0.5 * at, f"at point {at}"
        assert totals["data/cum/num_trajectories"] == 2 * at, f"at point {at}"
        assert totals["data/cum/num_unique_scenarios"] == 2 * at, f"at point {at}"
    assert at > 100
    rows = [row for row, _ in read_rows(run.history.path)]
    assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
    assert sum(receipt["usd"] for row in rows for receipt in row.receipts) == pytest.approx(at / 2)
    run.close()


ENDING = """
import asyncio, sys, art_core as art

model = art.Model(name="m", project="p", base_path=sys.argv[1], sinks=[])

async def attempt():
    model.metrics_builder("train").add_cost("train/judge", 0.25)
    return art.Trajectory(reward=1.0)

async def ends():
    await asyncio.sleep(0.05)
    raise {end}

async def main():
    await model.log(split="train", metrics={{"costs/gpu": 1.0}})
    await art.gather_trajectory_groups([art.TrajectoryGroup([attempt(), ends()])])

asyncio.run(main())
"""


@pytest.mark.parametrize("end", ["SystemExit(3)", "KeyboardInterrupt"])
def test_a_rollout_that_ends_the_program_loses_no_money(tmp_path, end):
    command = [sys.executable, "-c", ENDING.format(end=end), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    assert done.returncode != 0
    *_, (last, _) = read_rows(tmp_path / "p" / "models" / "m" / "history.jsonl")
    assert (last.metrics["costs/cum/train/judge"], last.metrics["costs/cum/all"]) == (0.25, 1.25)
