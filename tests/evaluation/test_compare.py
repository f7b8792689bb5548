"""Comparisons: of what exists, and of attempts that stop when it is decided."""

import asyncio

import pytest
from judge_server import USAGE

import art_core as art
from art_core.evaluation.compare import Comparison, compare, paired
from art_core.evaluation.statistics import MIN_PAIRS

PRICES = {"prompt_per_million": 2.0, "completion_per_million": 8.0}
CALL_USD = (USAGE["prompt_tokens"] * 2 + USAGE["completion_tokens"] * 8) / 1e6


def model_at(path, name):
    return art.Model(name=name, project="p", base_path=path, sinks=[])


@pytest.fixture
async def models(tmp_path):
    made = [model_at(tmp_path, name) for name in ("good", "bad")]
    yield made
    for model in made:
        await model.close()


async def better(model, scenario):
    return art.Trajectory(reward=float(model.name == "good" or scenario % 10 == 0))


def test_rewards_that_exist_are_compared_by_scenario():
    a = {str(i): [1.0, 0.0] for i in range(40)}
    b = {str(i): [0.0] for i in range(40)}
    found = paired(a, b, names=("x", "y"))
    assert (found.better, found.difference.mean, found.saved) == ("x", 0.5, 0)
    assert str(found) == "x - y: +0.5000 [+0.5000, +0.5000] on 40 of 40 scenarios: x is better"
    found = paired(a | {"0": []}, b)
    assert (found.left_out, found.planned) == (1, 40)
    assert ", 1 left out: a is better" in str(found)


def test_different_scenarios_are_an_error_that_shows_the_difference():
    a = {str(i): [1.0] for i in range(7)}
    with pytest.raises(art.ConfigError) as raised:
        paired(a, {"0": [1.0], "x": [1.0]}, names=("old", "new"))
    assert str(raised.value) == (
        "old and new have different scenarios: 6 only in old (1, 2, 3, 4, 5 and 1 more); "
        "1 only in new (x). Evaluate both on the same ones."
    )
    with pytest.raises(art.ConfigError, match="no scenario with rewards of both"):
        paired({"0": []}, {"0": [1.0]})


async def test_a_comparison_stops_when_it_is_decided(models):
    found = await compare(*models, range(400), better, max_concurrent=4, progress=None)
    assert found.better == "good"
    assert MIN_PAIRS <= found.difference.pairs < 60
    assert found.saved == pytest.approx(1 - found.difference.pairs / 400)
    assert "of the plan saved" in str(found)


async def test_equal_models_use_the_plan_and_stay_open(models):
    async def equal(model, scenario):
        return art.Trajectory(reward=float(scenario % 2))

    found = await compare(*models, range(30), equal, repeats=2, progress="compare")
    assert (found.better, found.difference.pairs, found.saved) == ("", 30, 0)
    assert str(found).endswith("30 scenarios: not decided; the attempts cost 0.000000 US dollars")


async def test_the_cost_is_in_the_next_row_of_each_model(models):
    @art.track_api_cost(source="judge", provider="x", model_name="j", **PRICES)
    async def judge():
        return {"usage": USAGE}

    async def paid(model, scenario):
        await judge()
        return await better(model, scenario)

    found = await compare(*models, range(3), paid, progress=None)
    assert found.usd == pytest.approx(6 * CALL_USD)
    for model in models:
        row = await model.log(split="val", step=0)
        assert row.metrics["costs/eval/judge"] == pytest.approx(3 * CALL_USD)


async def test_counts_are_checked_before_anything_runs(models):
    for wrong in ({"repeats": 0}, {"max_concurrent": 0}):
        with pytest.raises(art.ConfigError, match="must be a whole number of at least 1, got 0"):
            await compare(*models, range(5), better, **wrong)


async def test_scenarios_that_fail_on_a_side_are_left_out(models):
    async def sometimes(model, scenario):
        if model.name == "bad" and scenario < 2:
            raise ConnectionError("down")
        return await better(model, scenario)

    found = await compare(*models, range(5), sometimes, progress=None)
    assert (found.left_out, found.difference.pairs) == (2, 3)

    async def down(model, scenario):
        await asyncio.sleep(0)
        raise ConnectionError("down")

    with pytest.raises(art.RolloutError, match="no scenario gave a reward of both good and bad"):
        await compare(*models, range(5), down, progress=None)


async def test_steps_of_one_model_are_asked_for_by_name(tmp_path):
    model = art.Model(
        name="m",
        project="p",
        base_path=tmp_path,
        sinks=[],
        inference_base_url="http://127.0.0.1:1/v1",
        inference_model_name="served",
    )

    async def named(model, scenario):
        return art.Trajectory(reward=float(model.get_inference_name() == "served@3"))

    found = await compare(model, model, range(40), named, steps=(3, 0), progress=None)
    assert (found.a, found.b, found.better) == ("m@3", "m@0", "m@3")
    assert isinstance(found, Comparison)
    await model.close()
