"""Answers of OpenAI, Anthropic and Gemini as they were recorded: what a judge reads in them, and
what they cost by hand arithmetic.
"""

import json
import sys
from types import SimpleNamespace

import pytest
from judge_server import judging
from provider_server import TEXT, anthropic_answer, gemini_answer

import art_core as art
from art_core.metrics.readers import read_usage
from art_core.rewards.answers import score_of

ASK = [{"role": "user", "content": "Judge."}]


def completion(usage, message=None, **more):
    spoken = {"role": "assistant", "content": TEXT, **(message or {})}
    return {
        "object": "chat.completion",
        "created": 1796090413,
        "choices": [{"index": 0, "finish_reason": "stop", "message": spoken}],
        "usage": usage,
        **more,
    }


OPENAI = completion(
    {
        "prompt_tokens": 1600,
        "completion_tokens": 100,
        "total_tokens": 1700,
        "prompt_tokens_details": {"cached_tokens": 400, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 64,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    },
    {"refusal": None, "annotations": []},
    id="chatcmpl-CKqXk",
    model="gpt-4.1-mini-2025-04-14",
    service_tier="default",
    system_fingerprint="fp_658b958c37",
)
ANTHROPIC_AS_OPENAI = completion(
    {"prompt_tokens": 1600, "completion_tokens": 100, "total_tokens": 1700},
    id="msg_01QZ",
    model="claude-sonnet-4-5-20250929",
)
GEMINI_AS_OPENAI = completion(
    {"prompt_tokens": 1600, "completion_tokens": 60, "total_tokens": 1700},
    id="yKZvaPrGFtvjz7IPq7uEyA0",
    model="gemini-2.5-flash",
)
OF_LITELLM = {
    "anthropic/claude-sonnet-4-5": completion(
        {
            "prompt_tokens": 1600,
            "completion_tokens": 100,
            "total_tokens": 1700,
            "completion_tokens_details": {"reasoning_tokens": 0, "text_tokens": 100},
            "prompt_tokens_details": {
                "audio_tokens": None,
                "cache_write_tokens": 200,
                "cached_tokens": 400,
                "text_tokens": 1000,
                "cache_creation_tokens": 200,
                "cache_creation_token_details": {
                    "ephemeral_5m_input_tokens": 200,
                    "ephemeral_1h_input_tokens": 0,
                },
            },
            "cache_creation_input_tokens": 200,
            "cache_read_input_tokens": 400,
            "inference_geo": "not_available",
            "service_tier": "standard",
        },
        {"provider_specific_fields": {"citations": None, "thinking_blocks": None}},
        model="claude-sonnet-4-5",
    ),
    "gemini/gemini-2.5-flash": completion(
        {
            "prompt_tokens": 1000,
            "completion_tokens": 100,
            "total_tokens": 1100,
            "completion_tokens_details": {"reasoning_tokens": 40, "text_tokens": 60},
            "prompt_tokens_details": {
                "cached_tokens": 400,
                "text_tokens": 1000,
                "cached_tokens_details": {"text_tokens": 400, "audio_tokens": None},
            },
            "cache_read_input_tokens": 400,
        },
        {"images": [], "thinking_blocks": []},
        model="gemini-2.5-flash",
        vertex_ai_grounding_metadata=[],
    ),
}
BY_HAND = {
    "anthropic/claude-sonnet-4-5": (1000 * 3 + 400 * 0.3 + 200 * 3.75 + 100 * 15) / 1e6,
    "gemini/gemini-2.5-flash": (600 * 0.3 + 400 * 0.03 + 100 * 2.5) / 1e6,
}


def number(value):
    return score_of(value["score"])


@pytest.fixture
async def model(tmp_path):
    model = art.Model(name="m", project="p", base_path=tmp_path, sinks=[])
    yield model
    await model.close()


async def asked(judge, model):
    with model.metrics_builder("train").activate_context():
        score = await judge.ask(ASK, number)
    row = await model.log(split="train", step=1)
    return score, row.metrics["costs/train/judge"]


@pytest.mark.parametrize(
    ("recorded", "usd"),
    [
        (OPENAI, (1200 * 2 + 400 * 0.5 + 100 * 8) / 1e6),
        (ANTHROPIC_AS_OPENAI, (1600 * 2 + 100 * 8) / 1e6),
        (GEMINI_AS_OPENAI, (1600 * 2 + 100 * 8) / 1e6),  # 40 of the answer are in the total only
    ],
    ids=["OpenAI", "Anthropic in OpenAI's form", "Gemini in OpenAI's form"],
)
async def test_answers_in_openais_form(recorded, usd, model):
    prices = {"prompt_per_million": 2.0, "completion_per_million": 8.0}
    model.metrics_builder().register_model_pricing("j", **prices, cache_read_per_million=0.5)
    with judging(lambda _: (200, recorded)) as server:
        found = await asked(art.Judge(model="j", base_url=server.url), model)
    assert found == (0.5, pytest.approx(usd))


@pytest.mark.parametrize("name", OF_LITELLM)
async def test_answers_that_litellm_made_of_the_providers_own_forms(name, model, monkeypatch):
    answer = json.loads(
        json.dumps(OF_LITELLM[name]), object_hook=lambda fields: SimpleNamespace(**fields)
    )

    async def acompletion(**request):
        return answer

    monkeypatch.setitem(sys.modules, "litellm", SimpleNamespace(acompletion=acompletion))
    assert await asked(art.Judge(model=name), model) == (0.5, pytest.approx(BY_HAND[name]))


@pytest.mark.parametrize(
    ("own", "name"),
    [
        (anthropic_answer({"model": "claude-sonnet-4-5"}), "anthropic/claude-sonnet-4-5"),
        (gemini_answer("gemini-2.5-flash"), "gemini/gemini-2.5-flash"),
    ],
)
def test_litellm_and_the_providers_count_the_same_tokens(own, name):
    direct, through = read_usage(own), read_usage(OF_LITELLM[name])
    for count in ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens"):
        assert getattr(direct, count) == getattr(through, count)
    assert through.unread == direct.unread == ()


async def test_a_refusal_as_openai_sends_it(model):
    refused = {"content": None, "refusal": "I'm sorry, I can't assist with that."}
    with judging(lambda _: (200, completion({"prompt_tokens": 1}, refused, id="x"))) as server:
        judge = art.Judge(model="j", base_url=server.url)
        with pytest.raises(art.RewardError, match="the judge j refused: \"I'm sorry, I can't"):
            await judge.ask(ASK, number)
