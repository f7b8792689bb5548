"""Judges on labelled pairs."""

import pytest
from judge_server import USAGE, judging

import art_core as art
from art_core import rewards

PAIRS = [rewards.LabelledPair(question="?", better="good one", worse="bad") for _ in range(3)]
PRICES = {"prompt_per_million": 2.0, "completion_per_million": 8.0}
CALL_USD = (USAGE["prompt_tokens"] * 2 + USAGE["completion_tokens"] * 8) / 1e6


def score(value):
    return f'{{"score": {value}}}'


def prefers_good(request):
    first = request["messages"][1]["content"].partition("</a>")[0]
    return score(float("good" in first))


async def calibrated(answer, **prices):
    with judging(answer) as server:
        judge = art.Judge(model="j", base_url=server.url)
        (found,) = await rewards.calibrate([judge], PAIRS, criteria="c")
        assert len(server.requests) == 3 * len(PAIRS)
    return found


async def test_a_judge_that_agrees():
    found = await calibrated(prefers_good)
    assert (found.agreement, found.consistency, found.repeatability) == (1, 1, 1)
    assert found.usd is None


async def test_a_judge_that_prefers_a_position():
    found = await calibrated(lambda _: score(1))
    assert (found.agreement, found.consistency, found.repeatability) == (0.5, 0, 1)


async def test_a_judge_that_changes_its_mind():
    calls = iter([1, 0, 0] * 99)
    found = await calibrated(lambda _: score(next(calls)))
    assert found.repeatability < 1


async def test_the_cheapest_that_agrees(tmp_path):
    model = art.Model(name="m", project="p", base_path=tmp_path, sinks=[])
    builder = model.metrics_builder("eval")
    builder.register_model_pricing("cheap", prompt_per_million=1, completion_per_million=1)
    builder.register_model_pricing("dear", **PRICES)
    with judging(prefers_good) as server, builder.activate_context():
        judges = [art.Judge(model=name, base_url=server.url) for name in ("dear", "cheap")]
        found = await rewards.calibrate(judges, PAIRS)
        assert found[0].usd == pytest.approx(CALL_USD)
        best = rewards.cheapest(found)
    assert best.judge.model == "cheap"
    with pytest.raises(art.ConfigError, match="no judge of known price agrees in 100% of the"):
        rewards.cheapest([c for c in found if c.agreement < 1], agreement=1.0)
    with pytest.raises(art.ConfigError, match="needs labelled pairs"):
        await rewards.calibrate(judges, [])
    await model.close()
