from enum import Enum
from types import SimpleNamespace

import pytest

from art_core.base.errors import ConfigError
from art_core.metrics.readers import read_usage
from art_core.metrics.receipt import GpuTime, TokenUsage


def test_openai_chat_counts_cached_tokens_inside_the_prompt():
    response = {
        "usage": {
            "prompt_tokens": 100,
            "completion_tokens": 20,
            "prompt_tokens_details": {"cached_tokens": 60},
        }
    }
    assert read_usage(response) == TokenUsage(
        input_tokens=100, output_tokens=20, cache_read_tokens=60
    )


def test_openai_responses_do_too():
    response = {
        "usage": {
            "input_tokens": 100,
            "output_tokens": 20,
            "input_tokens_details": {"cached_tokens": 60},
        }
    }
    assert read_usage(response) == TokenUsage(
        input_tokens=100, output_tokens=20, cache_read_tokens=60
    )


def test_anthropic_counts_the_cache_beside_the_prompt():
    usage = SimpleNamespace(
        input_tokens=5, output_tokens=2, cache_read_input_tokens=20, cache_creation_input_tokens=8
    )
    assert read_usage(SimpleNamespace(usage=usage)) == TokenUsage(
        input_tokens=33, output_tokens=2, cache_read_tokens=20, cache_write_tokens=8
    )


def test_a_cost_that_the_provider_reports_is_read():
    assert read_usage({"usage": {"prompt_tokens": 1, "cost": 0.25}}).cost_usd == 0.25


@pytest.mark.parametrize(
    "response", [{}, {"usage": None}, {"usage": {}}, "text", None, SimpleNamespace()]
)
def test_a_response_without_usage_gives_none(response):
    assert read_usage(response) is None


def test_negative_usage_is_an_error():
    with pytest.raises(ConfigError, match="seconds can't be negative"):
        GpuTime(device="H200", seconds=-1.0)


def test_anthropic_tells_apart_how_long_its_cache_writes_are_kept():
    response = {
        "usage": {
            "input_tokens": 5,
            "output_tokens": 1,
            "cache_creation_input_tokens": 8,
            "cache_creation": {"ephemeral_5m_input_tokens": 2, "ephemeral_1h_input_tokens": 6},
            "service_tier": "batch",
        }
    }
    usage = read_usage(response)
    assert (usage.input_tokens, usage.cache_write_tokens, usage.cache_write_1h_tokens) == (13, 8, 6)
    assert usage.service_tier == "batch"


def test_gemini_counts_thoughts_beside_the_answer():
    counts = {"promptTokenCount": 9, "candidatesTokenCount": 3, "thoughtsTokenCount": 4}
    expected = TokenUsage(input_tokens=9, output_tokens=7, cache_read_tokens=2)
    assert read_usage({"usageMetadata": counts | {"cachedContentTokenCount": 2}}) == expected
    counted = SimpleNamespace(
        prompt_token_count=9,
        candidates_token_count=3,
        thoughts_token_count=4,
        cached_content_token_count=2,
    )
    assert read_usage(SimpleNamespace(usage_metadata=counted)) == expected


def test_terms_are_what_differs_from_the_list_price():
    tiers = Enum("Tier", {"FLEX": "Flex"})
    usage = TokenUsage(service_tier=tiers.FLEX, speed="standard", geography="US")
    assert usage.terms == {"service_tier": "flex", "geography": "us"}
    assert TokenUsage(service_tier="default").terms == {}


def test_the_service_tier_of_an_openai_response_is_read():
    assert (
        read_usage({"service_tier": "flex", "usage": {"prompt_tokens": 1}}).service_tier == "flex"
    )


@pytest.mark.parametrize("usd", [-1.0, float("nan"), float("inf")])
def test_a_device_hour_has_a_price_of_at_least_nothing(usd):
    with pytest.raises(ConfigError, match="usd_per_hour must be a price"):
        GpuTime(device="card", seconds=1.0, usd_per_hour=usd)


CHAT = {"prompt_tokens": 100, "completion_tokens": 20}


@pytest.mark.parametrize(
    "usage",
    [
        CHAT | {"prompt_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 30}},
        CHAT | {"prompt_tokens_details": {"cached_tokens": 60}, "cache_creation_input_tokens": 30},
        {
            "input_tokens": 100,
            "output_tokens": 20,
            "input_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 30},
        },
        {
            "input_tokens": 100,
            "output_tokens": 20,
            "cache_read_tokens": 60,
            "cache_write_tokens": 30,
        },
        CHAT | {"cached_tokens": 60, "cache_creation_input_tokens": 30},
    ],
    ids=["OpenAI chat, OpenRouter", "LiteLLM", "OpenAI Responses", "Pydantic AI", "Moonshot"],
)
def test_what_was_written_into_the_cache_is_a_part_of_the_prompt(usage):
    assert read_usage({"usage": usage}) == TokenUsage(
        input_tokens=100, output_tokens=20, cache_read_tokens=60, cache_write_tokens=30
    )


def test_litellm_tells_how_long_anthropics_cache_writes_are_kept():
    kept = {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20}
    details = {"cached_tokens": 60, "cache_creation_token_details": kept}
    usage = CHAT | {"prompt_tokens_details": details, "cache_creation_input_tokens": 30}
    found = read_usage({"usage": usage})
    assert (found.cache_write_tokens, found.cache_write_1h_tokens) == (30, 20)


def test_litellm_tells_what_of_geminis_cache_was_sound():
    cached = {"text_tokens": 50, "audio_tokens": 10, "image_tokens": None}
    details = {"cached_tokens": 60, "audio_tokens": 20, "cached_tokens_details": cached}
    found = read_usage({"usage": CHAT | {"prompt_tokens_details": details}})
    assert (found.cache_read_tokens, found.cache_read_audio_tokens) == (60, 10)
    assert found.unread == ()


@pytest.mark.parametrize("tokens", [CHAT, {"input_tokens": 100, "output_tokens": 20}])
def test_web_searches_are_counted_where_the_provider_says_how_many(tokens):
    assert read_usage({"usage": tokens}).web_searches == 0
    searching = tokens | {"server_tool_use": {"web_search_requests": 3}}
    assert read_usage({"usage": searching}).web_searches == 3


def test_pydantic_ai_tells_it_too():
    usage = {"input_tokens": 100, "cache_write_tokens": 30, "cache_write_1h_tokens": 20}
    found = read_usage({"usage": usage})
    assert (found.input_tokens, found.cache_write_tokens) == (100, 30)
    assert found.cache_write_1h_tokens == 20


@pytest.mark.parametrize(
    ("more", "answer"),
    [
        ({"total_tokens": 120, "completion_tokens_details": {"reasoning_tokens": 15}}, 20),
        ({"total_tokens": 135, "completion_tokens_details": {"reasoning_tokens": 15}}, 35),
        ({"total_tokens": 135}, 35),
        ({"total_tokens": 180, "prompt_tokens_details": {"cached_tokens": 60}}, 20),
        ({}, 20),
    ],
    ids=["OpenAI", "xAI", "Gemini's OpenAI form", "a cache beside the prompt", "no total"],
)
def test_thoughts_are_answered_tokens_though_some_count_them_beside_the_answer(more, answer):
    assert read_usage({"usage": CHAT | more}).output_tokens == answer


@pytest.mark.parametrize(
    ("said", "usd"),
    [
        ({"cost": 0.25}, 0.25),
        ({"cost_in_usd_ticks": 232_856_000}, 0.0232856),
        ({"estimated_cost": 0.002}, 0.002),
        ({"cost": {"input_tokens_cost": 0.01, "request_cost": 0.005, "total_cost": 0.015}}, 0.015),
        ({"cost": 0.95, "is_byok": True, "cost_details": {"upstream_inference_cost": 19}}, 19.95),
        ({"cost": 0, "is_byok": True}, 0.0),
        ({"cost": 0.5, "is_byok": False, "cost_details": {"upstream_inference_cost": 0.5}}, 0.5),
    ],
    ids=[
        "OpenRouter",
        "xAI",
        "DeepInfra",
        "Perplexity",
        "your key",
        "your key, nothing known",
        "their key",
    ],
)
def test_what_a_call_cost_is_read_in_the_form_of_each_provider(said, usd):
    assert read_usage({"usage": CHAT | said}).cost_usd == pytest.approx(usd, abs=1e-15)
    responses = {"input_tokens": 100, "output_tokens": 20}
    assert read_usage({"usage": responses | said}).cost_usd == pytest.approx(usd, abs=1e-15)


def test_what_geminis_tools_gave_to_read_is_a_part_of_the_prompt():
    counts = {"promptTokenCount": 9, "toolUsePromptTokenCount": 10_000, "candidatesTokenCount": 3}
    assert read_usage({"usageMetadata": counts}) == TokenUsage(input_tokens=10_009, output_tokens=3)


@pytest.mark.parametrize(
    ("details", "more"),
    [
        ({}, {}),
        ({"cache_read": 60, "cache_creation": 30}, {"cache_read": 60, "cache_write": 30}),
        ({"flex_cache_read": 60, "audio": None}, {"cache_read": 60}),
        (
            {
                "cache_creation": 0,
                "ephemeral_5m_input_tokens": 10,
                "ephemeral_1h_input_tokens": 20,
            },
            {"cache_write": 30, "cache_write_1h": 20},
        ),
    ],
)
def test_a_message_of_langchain_says_its_usage_in_one_form(details, more):
    counts = {"input_tokens": 100, "output_tokens": 20, "total_tokens": 120}
    message = SimpleNamespace(
        usage_metadata=counts | {"input_token_details": details},
        response_metadata={"service_tier": "flex"},
    )
    expected = {f"{name}_tokens": count for name, count in more.items()}
    assert read_usage(message) == TokenUsage(
        input_tokens=100, output_tokens=20, service_tier="flex", **expected
    )
    assert read_usage({"usage_metadata": counts}).input_tokens == 100
