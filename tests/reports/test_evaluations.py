from __future__ import annotations

import math

import pytest

import art_core as art
from art_core.reports.evaluations import read_evaluations


@pytest.fixture
def model(tmp_path):
    return art.Model(name="m", project="demo", sinks=[], base_path=tmp_path)


async def attempt(model, scenario):
    return art.Trajectory(reward=float(scenario["id"] != "c"))


async def test_an_evaluation_has_the_interval_that_it_was_reported_with(model):
    scenarios = [{"id": name} for name in "abc"]
    (made,) = await art.evaluate(model, scenarios, attempt, repeats=2, step=3, progress=None)
    await model.close()
    (found,) = read_evaluations(art.open_run(model.run_dir))
    assert (found.split, found.step, found.scenarios) == ("val", 3, 3)
    assert found.reward == pytest.approx(2 / 3)
    assert (found.low, found.high) == pytest.approx((made.reward.low, made.reward.high))
    assert found.pass_at == {1: pytest.approx(2 / 3), 2: pytest.approx(2 / 3)}
    assert (found.usd, found.failed) == (0.0, 0.0)


async def test_the_interval_of_a_logged_split_is_computed_from_its_trajectories(model):
    groups = [
        art.TrajectoryGroup([art.Trajectory(reward=r)], metadata={"scenario_id": name})
        for name, r in (("a", 0.0), ("b", 1.0))
    ]
    await model.log(groups, split="test", step=1)
    await model.log(groups[:1], split="test", step=2)
    await model.log([art.TrajectoryGroup([art.Trajectory(reward=1.0)])], split="train", step=2)
    await model.close()
    first, second = read_evaluations(art.open_run(model.run_dir))
    # Two scenarios: 0.5 with an error of 0.5, and Student's t of one degree is 12.706.
    assert (first.step, first.low, first.high) == (
        1,
        pytest.approx(0.5 - 12.706 * 0.5, abs=1e-3),
        pytest.approx(0.5 + 12.706 * 0.5, abs=1e-3),
    )
    assert (second.low, second.high) == (None, None)
    assert math.isfinite(second.reward)


async def test_without_an_error_and_trajectories_there_is_no_interval(log):
    log.add(step=4, split="val", val__reward=0.5)
    (found,) = read_evaluations(art.open_run(log.path.parent))
    assert (found.reward, found.low, found.scenarios, found.pass_at) == (0.5, None, None, {})
