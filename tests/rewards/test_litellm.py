"""Judges of Anthropic and Gemini through the real litellm, with a server of recorded shapes."""

import importlib.util
import json

import pytest
from provider_server import providing

import art_core as art
from art_core.rewards.answers import score_of
from art_core.rewards.judge import list_of

# litellm and what it is built on warn about themselves.
pytestmark = [
    pytest.mark.judges,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(importlib.util.find_spec("litellm") is None, reason="needs litellm"),
]

ASK = [{"role": "system", "content": "Be fair."}, {"role": "user", "content": "Judge."}]
SCHEMA = {
    "type": "object",
    "properties": {"score": {"type": "number"}},
    "required": ["score"],
    "additionalProperties": False,
}
SONNET, HAIKU, FLASH = (
    "anthropic/claude-sonnet-4-5",
    "anthropic/claude-3-haiku-20240307",
    "gemini/gemini-2.5-flash",
)
# US dollars per million tokens in November 2026, for the counts of `provider_server`.
BY_HAND = {
    # 1,000 plain, 400 from the cache, 200 into the cache, 100 of the answer
    SONNET: (1000 * 3 + 400 * 0.3 + 200 * 3.75 + 100 * 15) / 1e6,
    HAIKU: (1000 * 0.25 + 400 * 0.03 + 200 * 0.3 + 100 * 1.25) / 1e6,
    # 600 plain, 400 from the cache, 100 of the answer and its thoughts
    FLASH: (600 * 0.3 + 400 * 0.03 + 100 * 2.5) / 1e6,
}


def number(value):
    return score_of(value["score"])


@pytest.fixture
def server(monkeypatch):
    with providing() as running:
        monkeypatch.setenv("ANTHROPIC_API_BASE", running.url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
        monkeypatch.setenv("GEMINI_API_BASE", running.url)
        monkeypatch.setenv("GEMINI_API_KEY", "k")
        yield running


@pytest.fixture
async def model(tmp_path):
    model = art.Model(name="m", project="p", base_path=tmp_path, sinks=[])
    yield model
    await model.close()


@pytest.mark.parametrize("name", BY_HAND)
async def test_a_score_comes_back_and_its_dollars_are_those_of_hand_arithmetic(server, model, name):
    judge = art.Judge(model=name, source="judge/x")
    with model.metrics_builder("train").activate_context():
        assert await judge.ask(ASK, number, schema=SCHEMA) == 0.5
    row = await model.log(split="train", step=1)
    assert row.metrics["costs/train/judge/x"] == pytest.approx(BY_HAND[name])
    assert judge.spent_usd == pytest.approx(BY_HAND[name])
    assert {k for k in row.metrics if "priced" in k} == set()
    assert "score" in json.dumps(server.requests[0][1]), "the schema is sent"


@pytest.mark.parametrize("name", BY_HAND)
async def test_ruler_scores_a_group(server, model, name):
    server.text = json.dumps({"scores": [{"id": "1", "score": 0.9}, {"id": "2", "score": 0.1}]})
    question = {"role": "user", "content": "Is water wet?"}

    async def rollout(answer):
        said = {"role": "assistant", "content": answer}
        return art.Trajectory(messages_and_choices=[question, said])

    groups = await art.gather_trajectory_groups(
        [art.TrajectoryGroup(rollout(answer) for answer in ("yes", "no"))],
        pbar_desc=None,
        after_each=lambda group: art.ruler_score_group(group, name),
    )
    row = await model.log(groups, split="train", step=1)
    assert groups[0].rewards == [0.9, 0.1]
    assert row.metrics["costs/train/judge/ruler"] == pytest.approx(BY_HAND[name])


BUSY = {
    SONNET: (529, {"type": "error", "error": {"type": "overloaded_error", "message": "Busy"}}),
    FLASH: (503, {"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}}),
}
BAD_KEY = {
    SONNET: (401, {"type": "error", "error": {"type": "authentication_error", "message": "no"}}),
    FLASH: (401, {"error": {"code": 401, "message": "no key", "status": "UNAUTHENTICATED"}}),
}


@pytest.mark.parametrize("name", BUSY)
async def test_a_busy_service_is_asked_again(server, name):
    server.failures.append(BUSY[name])
    assert await art.Judge(model=name, max_retries=2).ask(ASK, number, schema=SCHEMA) == 0.5
    assert len(server.requests) == 2


@pytest.mark.parametrize("name", BAD_KEY)
async def test_a_key_that_is_refused_is_an_error_with_the_services_reason(server, name):
    server.failures += [BAD_KEY[name]] * 9
    with pytest.raises(art.RewardError, match="could not be asked: AuthenticationError: .*no"):
        await art.Judge(model=name, max_retries=0).ask(ASK, number)
    assert len(server.requests) == 1


@pytest.mark.parametrize("name", [SONNET, FLASH])
async def test_prose_is_asked_for_once_more_and_then_an_error(server, name):
    server.text = "I like both."
    judge = art.Judge(model=name)
    with pytest.raises(art.RewardError, match="gave no usable answer: the answer holds no JSON"):
        await judge.ask(ASK, number, schema=list_of("scores", {}))
    assert len(server.requests) == 2


async def test_an_answer_that_the_service_blocked_is_an_error(server):
    blocked = {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {}}
    server.failures += [(200, blocked)] * 9
    with pytest.raises(art.RewardError, match=f"the judge {FLASH} "):
        await art.Judge(model=FLASH, max_retries=0).ask(ASK, number)
