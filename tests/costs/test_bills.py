"""Bills for other things than plain tokens, from the payload to US dollars, worked out by hand.

Prices are those that the providers list in November 2026: US dollars per million tokens, or per
thousand searches.
"""

import pytest

import art_core as art
from art_core.costs.builder import PriceBook
from art_core.hooks.host import Core
from art_core.prices.tables import read_table

CHAT = {"prompt_tokens": 10_000, "completion_tokens": 1_000, "total_tokens": 11_000}
RESPONSES = {"input_tokens": 10_000, "output_tokens": 1_000, "total_tokens": 11_000}
CLAUDE = {
    "input_tokens": 10_000,
    "output_tokens": 1_000,
    "cache_read_input_tokens": 0,
    "cache_creation_input_tokens": 0,
}
GEMINI = {"promptTokenCount": 10_000, "candidatesTokenCount": 1_000, "totalTokenCount": 11_000}


def tool(kind, action=None, status="completed"):
    return {"type": kind, "status": status} | ({"action": {"type": action}} if action else {})


def of_openai(usage=RESPONSES, **more):
    return {"object": "response", "usage": usage, **more}


def line(body, status=200, error=None):
    return {
        "custom_id": "1",
        "response": {"status_code": status, "body": body},
        "error": error,
    }


def claude(**more):
    return {"type": "message", "usage": CLAUDE | more}


def claude_line(kind, **result):
    return {"custom_id": "1", "result": {"type": kind, **result}}


def gemini(candidates=(), **more):
    return {"candidates": list(candidates), "usageMetadata": GEMINI | more}


def grounded(*queries, **more):
    return {"groundingMetadata": {"webSearchQueries": list(queries)} | more}


def parts(name, **counts):
    return {name: [{"modality": k, "tokenCount": n} for k, n in counts.items()]}


# provider, model, response, dollars by hand
BILLS = {
    "a line of an OpenAI batch: 10k x 1 + 1k x 4, half of 2 and 8": (
        *("openai", "gpt-4.1", line({"object": "chat.completion", "usage": CHAT})),
        0.014,
    ),
    "one with another tier in it": (
        *("openai", "gpt-4.1", line({"service_tier": "default", "usage": CHAT})),
        0.014,
    ),
    "a line that failed costs nothing": (
        *("openai", "gpt-4.1", line({"error": {"message": "no"}}, status=400)),
        0.0,
    ),
    "a line that expired too": (
        *("openai", "gpt-4.1", {"custom_id": "1", "response": None, "error": {"code": "x"}}),
        0.0,
    ),
    "a line of an Anthropic batch: 10k x 1.5 + 1k x 7.5": (
        *("anthropic", "claude-sonnet-4-5", claude_line("succeeded", message=claude())),
        0.0225,
    ),
    "one that was cancelled": ("anthropic", "claude-sonnet-4-5", claude_line("canceled"), 0.0),
    "a line of a Gemini batch: 10k x 0.15 + 1k x 1.25": (
        *("google", "gemini-2.5-flash", {"key": "1", "response": gemini()}),
        0.00275,
    ),
    "fast mode that the book lists: 10k x 10 + 1k x 50": (
        *("anthropic", "claude-opus-4-8", claude(speed="fast")),
        0.15,
    ),
    "fast mode at six times the list price: 10k x 30 + 1k x 150": (
        *("anthropic", "claude-opus-4-6", claude(speed="fast")),
        0.45,
    ),
    "fast mode of a model that has none": (
        *("anthropic", "claude-opus-4-1", claude(speed="fast")),
        None,
    ),
    "the usual speed, anywhere": (
        *("anthropic", "claude-opus-4-8", claude(speed="standard", inference_geo="global")),
        0.075,
    ),
    "inference in the US: 10k x 3.3 + 1k x 16.5": (
        *("anthropic", "claude-sonnet-4-6", claude(inference_geo="us")),
        0.0495,
    ),
    "both: 10k x 11 + 1k x 55": (
        *("anthropic", "claude-opus-4-8", claude(speed="fast", inference_geo="us")),
        0.165,
    ),
    "a tier that the book does not list for a model: 10k x 1 + 1k x 4": (
        *("openai", "gpt-4.1", {"service_tier": "flex", "usage": CHAT}),
        0.014,
    ),
    "Groq's usual tier: 10k x 0.15 + 1k x 0.6": (
        *("groq", "openai/gpt-oss-120b", {"service_tier": "on_demand", "usage": CHAT}),
        0.0021,
    ),
    "committed capacity has no price": (
        *("anthropic", "claude-sonnet-4-6", claude(service_tier="priority")),
        None,
    ),
    "a tier nobody knows": ("google", "gemini-2.5-flash", gemini(serviceTier="turbo"), None),
    "provisioned throughput": (
        *("google", "gemini-2.5-flash", gemini(trafficType="PROVISIONED_THROUGHPUT")),
        None,
    ),
    "an unspecified one: 10k x 0.3 + 1k x 2.5": (
        *("google", "gemini-2.5-flash", gemini(serviceTier="SERVICE_TIER_UNSPECIFIED")),
        0.0055,
    ),
    "two searches at 10 a thousand, beside 0.0225": (
        "openai",
        "gpt-5",
        of_openai(
            output=[
                tool("web_search_call", "search"),
                tool("web_search_call", "find_in_page"),
                tool("web_search_call", "search", "failed"),
                tool("web_search_call"),
                tool("message"),
            ]
        ),
        0.0425,
    ),
    "searches of files at 2.5 a thousand": (
        *("openai", "gpt-5", of_openai(output=[tool("file_search_call")] * 4)),
        0.0325,
    ),
    "Gemini 2 bills a grounded prompt, 35 a thousand, beside 0.0055": (
        *("google", "gemini-2.5-flash", gemini([grounded("a", "b", "c")])),
        0.0405,
    ),
    "Gemini 3 bills each query, 14 a thousand, beside 0.008": (
        *("google", "gemini-3-flash-preview", gemini([grounded("a", "", "b"), grounded("c")])),
        0.05,
    ),
    "speech in the prompt: 2k x 0.3 + 8k x 1 + 1k x 2.5": (
        "google",
        "gemini-2.5-flash",
        gemini(**parts("promptTokensDetails", TEXT=2_000, AUDIO=8_000)),
        0.0111,
    ),
    "half of it cached: 2k x 0.3 + 4k x 1 + 4k x 0.1 + 1k x 2.5": (
        "google",
        "gemini-2.5-flash",
        gemini(
            cachedContentTokenCount=4_000,
            **parts("promptTokensDetails", TEXT=2_000, AUDIO=8_000),
            **parts("cacheTokensDetails", AUDIO=4_000),
        ),
        0.0075,
    ),
    "speech at the price of text: 10k x 1.25 + 1k x 10": (
        *("google", "gemini-2.5-pro", gemini(**parts("promptTokensDetails", AUDIO=10_000))),
        0.0225,
    ),
    "a picture as an answer: 10k x 0.3 + 1k x 30": (
        "google",
        "gemini-2.5-flash-image",
        gemini(**parts("candidatesTokensDetails", IMAGE=1_000)),
        0.033,
    ),
    "speech both ways: 4k x 4 + 6k x 32 + 500 x 16 + 500 x 64": (
        "openai",
        "gpt-realtime",
        of_openai(
            RESPONSES
            | {
                "input_token_details": {"text_tokens": 4_000, "audio_tokens": 6_000},
                "output_token_details": {"text_tokens": 500, "audio_tokens": 500},
            }
        ),
        0.248,
    ),
    "pictures in the prompt: 2k x 5 + 8k x 10 + 1k x 40": (
        "openai",
        "gpt-image-1",
        of_openai(
            RESPONSES | {"input_tokens_details": {"text_tokens": 2_000, "image_tokens": 8_000}}
        ),
        0.13,
    ),
    "Bedrock, cache beside the prompt: 10k x 3.3 + 5k x 0.33 + 4k x 4.125 + 1k x 16.5": (
        "aws",
        "anthropic.claude-sonnet-4-6",
        {
            "usage": {
                "inputTokens": 10_000,
                "outputTokens": 1_000,
                "totalTokens": 20_000,
                "cacheReadInputTokens": 5_000,
                "cacheWriteInputTokens": 4_000,
                "cacheDetails": [{"ttl": "5m", "inputTokens": 4_000}],
            }
        },
        0.06765,
    ),
}


@pytest.fixture
def book():
    plugins = art.Plugins()
    plugins.register(Core(), "core")
    return PriceBook(plugins)


@pytest.mark.parametrize("name", BILLS)
def test_a_call_costs_what_the_list_prices_give_by_hand(book, name):
    provider, model, response, usd = BILLS[name]
    usage = book.usage(response, provider)
    paid, rates = book.quote(provider, model, usage)
    assert paid == (None if usd is None else pytest.approx(usd, abs=1e-12))
    assert book.unread(provider, model, usage, rates) == ()


def test_a_finished_batch_of_openai_costs_half(book):
    batch = {
        "object": "batch",
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "input_tokens": 10_000}
        | {"output_tokens": 1_000, "input_tokens_details": {"cached_tokens": 4_000}},
    }
    # 6k x 0.625 + 4k x 0.0625 + 1k x 5
    assert book.price("openai", "gpt-5", book.usage(batch, "openai")) == pytest.approx(0.009)
    waiting = {"object": "batch", "usage": None}
    assert book.price("openai", "gpt-5", book.usage(waiting, "openai")) is None


def test_factors_are_dated_and_say_where_they_are_from():
    assert read_table("term")["as_of"].startswith("2026-")
    for entry in read_table("term")["factors"]:
        assert entry["factor"] > 0
        assert entry["source"].startswith("https://")
