"""Unknown fields of a usage: named by their path, counted, never ignored."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import art_core as art
from art_core.costs.stream import CUT, TrackedStream
from art_core.metrics import providers, readers
from art_core.metrics.providers import read_delta
from art_core.metrics.readers import read_usage
from art_core.metrics.receipt import TokenUsage

CHAT = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}
CLAUDE = {"input_tokens": 10, "output_tokens": 3, "cache_read_input_tokens": 0}


def unread(response):
    return read_usage(response).unread


TOOLS = {"input_tokens": 1, "tools": [{"calls": 0}, {"calls": 2}, {"calls": 3}]}


@pytest.mark.parametrize(
    ("usage", "path"),
    [
        (
            CHAT | {"prompt_tokens_details": {"video_tokens": 5}},
            "prompt_tokens_details.video_tokens",
        ),
        (CHAT | {"pages": 2, "videos": 0, "note": "", "none": None}, "pages"),
        (TOOLS, "tools[].calls"),
        (CLAUDE | {"server_tool_use": {"code_executions": 1}}, "server_tool_use.code_executions"),
        ({"inputTokens": 1, "outputTokens": 1, "guardUnits": 4}, "guardUnits"),
        ({"billed_units": {"input_tokens": 1, "search_units": 2}}, "billed_units.search_units"),
        (
            CLAUDE | {"cache_creation": {"ephemeral_24h_input_tokens": 9}},
            "cache_creation.ephemeral_24h_input_tokens",
        ),
    ],
)
def test_a_field_that_nobody_understands_is_named_by_its_path(usage, path):
    assert unread({"usage": usage}) == (f"usage.{path}",)


def test_other_places_have_their_own_names():
    gemini = {"promptTokenCount": 1, "thoughtSignatureCount": 2}
    gemini |= {"candidatesTokensDetails": [{"modality": "VIDEO", "tokenCount": 5}]}
    maps = {"groundingChunks": [{"web": {}}, {"maps": {"uri": "x"}}]}
    response = {"usageMetadata": gemini, "candidates": [{"groundingMetadata": maps}, {}]}
    assert unread(response) == (
        "usageMetadata.thoughtSignatureCount",
        "usageMetadata.candidatesTokensDetails.VIDEO",
        "candidates[].groundingMetadata.groundingChunks[].maps",
    )
    message = {"usage_metadata": {"input_tokens": 1, "output_token_details": {"video": 2}}}
    assert unread(message) == ("usage_metadata.output_token_details.video",)
    tools = [{"type": "code_interpreter_call"}, {"type": "function_call"}]
    assert unread({"usage": {"input_tokens": 1}, "output": tools}) == (
        "output[].code_interpreter_call",
    )


def test_an_iteration_of_another_model_is_not_priced_as_this_one():
    other = {"type": "advisor_message", "model": "claude-opus-4-8", "input_tokens": 900}
    usage = CLAUDE | {"iterations": [{"type": "message", **CLAUDE, "pages": 1}, other]}
    read = read_usage({"usage": usage})
    assert (read.input_tokens, read.output_tokens) == (10, 3)
    assert read.unread == ("usage.iterations[].pages", "usage.iterations[].model")
    alone = read_usage({"usage": CLAUDE | {"iterations": [other]}})
    assert (alone.input_tokens, alone.unread) == (10, ("usage.iterations[].model",))


def test_objects_of_client_libraries_are_looked_into_as_dicts_are():
    details = SimpleNamespace(cached_tokens=4, _private=1)
    usage = SimpleNamespace(**CHAT, prompt_tokens_details=details, pages=2)
    usage.__pydantic_extra__ = {"stamps": 1}
    read = read_usage(SimpleNamespace(usage=usage))
    assert (read.cache_read_tokens, read.unread) == (4, ("usage.pages", "usage.stamps"))


def test_openai_s_own_objects_keep_fields_that_they_do_not_know():
    types = pytest.importorskip("openai.types.chat")
    chat = types.ChatCompletion.construct(usage=CHAT | {"pages": 2})
    assert unread(chat) == ("usage.pages",)


def test_a_cost_that_the_provider_names_leaves_nothing_open():
    for usage in (CHAT, {"input_tokens": 10, "output_tokens": 3}, CLAUDE):
        assert unread({"usage": usage | {"cost": 0.5, "pages": 2}}) == ()


def test_what_repeats_other_fields_or_costs_nothing_is_understood():
    groq = {"queue_time": 0.1, "total_time": 0.2, "prompt_cache_miss_tokens": 10}
    thoughts = {"reasoning_tokens": 1, "rejected_prediction_tokens": 1}
    assert unread({"usage": CHAT | groq | {"completion_tokens_details": thoughts}}) == ()
    details = {"input_tokens_details": {"text_tokens": 10}, "requests": 1, "details": {"x": 1}}
    assert unread({"usage": {"input_tokens": 10, "output_tokens": 3} | details}) == ()
    fetched = {"server_tool_use": {"web_fetch_requests": 3}, "service_tier": "standard"}
    assert unread({"usage": CLAUDE | fetched}) == ()
    message = {"input_token_details": {"flex": 1, "flex_cache_read": 2}, "total_tokens": 13}
    assert unread({"usage_metadata": {"input_tokens": 10, "output_tokens": 3} | message}) == ()


def test_cohere_bills_units_beside_the_tokens_that_the_model_saw():
    units = {"billed_units": {"input_tokens": 10.0, "output_tokens": 3}, "cached_tokens": 4}
    usage = units | {"tokens": {"input_tokens": 500, "output_tokens": 9}}
    assert read_usage({"usage": usage}) == TokenUsage(
        input_tokens=10, output_tokens=3, cache_read_tokens=4
    )


def test_an_answer_that_cites_pages_has_searched_once():
    note = {"type": "url_citation", "url_citation": {"url": "x"}}
    for notes, searches in (([note, note], 1), ([{"type": "file_citation"}], 0), (None, 0)):
        choices = [{"message": {"annotations": notes}}]
        assert read_usage({"usage": CHAT, "choices": choices}).web_searches == searches


def test_a_usage_that_refers_to_itself_is_no_trap():
    usage = CHAT.copy()
    usage["again"] = [usage]
    assert len(unread({"usage": usage})) == 6  # three counts, two levels deep


@pytest.mark.parametrize(
    "response",
    [
        SimpleNamespace(usage=CHAT, _hidden_params={"cache_hit": True}),
        SimpleNamespace(usage={}, cache_hit=True),
        SimpleNamespace(usage=CHAT, cached=True),
        {"usage": CHAT, "gptcache": True},
        {"usage_metadata": {"input_tokens": 10, "output_tokens": 3, "total_cost": 0}},
    ],
    ids=["LiteLLM", "DSPy", "AutoGen", "GPTCache", "LangChain"],
)
def test_a_reply_out_of_the_clients_own_cache_costs_nothing(response):
    assert read_usage(response).cost_usd == 0


def test_thoughts_beside_an_answer_without_a_total_are_answered_tokens():
    usage = {"prompt_tokens": 10, "completion_tokens": 3}
    outside = {"completion_tokens_details": {"reasoning_tokens": 20}}
    inside = {"completion_tokens_details": {"reasoning_tokens": 2}}
    assert read_usage({"usage": usage | outside}).output_tokens == 23
    assert read_usage({"usage": usage | inside}).output_tokens == 3


def test_an_anthropic_delta_may_leave_out_the_prompt():
    usage = {"output_tokens": 3, "server_tool_use": {"web_search_requests": 2}}
    assert read_delta({"usage": usage}) == TokenUsage(output_tokens=3, web_searches=2)
    assert read_delta({"usage": {"server_tool_use": {"web_search_requests": 2}}}) is None


def test_cache_writes_are_counted_where_only_their_parts_are_there():
    parts = {"ephemeral_5m_input_tokens": 2, "ephemeral_1h_input_tokens": 6}
    read = read_usage({"usage": {"input_tokens": 5, "cache_creation": parts}})
    assert (read.input_tokens, read.cache_write_tokens, read.cache_write_1h_tokens) == (13, 8, 6)


@pytest.mark.parametrize("metadata", [{"usage": {"speed": "fast", "inference_geo": "us"}}, {}])
def test_a_langchain_message_has_the_terms_in_its_metadata(metadata):
    message = {"usage_metadata": {"input_tokens": 1}, "response_metadata": metadata}
    found = read_usage(message)
    raw = metadata.get("usage", {})
    assert (found.speed, found.geography) == (raw.get("speed"), raw.get("inference_geo"))


def test_bedrock_tells_apart_how_long_its_cache_writes_are_kept():
    cache = [{"ttl": "1h", "inputTokens": 6}, {"ttl": "5m", "inputTokens": 2}]
    usage = {"inputTokens": 5, "outputTokens": 1, "cacheWriteInputTokens": 8, "cacheDetails": cache}
    read = read_usage({"usage": usage, "serviceTier": {"type": "flex"}})
    assert (read.input_tokens, read.cache_write_1h_tokens, read.service_tier) == (13, 6, "flex")
    assert read.unread == ()


def seen(chunks, taken=None):
    found = []
    stream = TrackedStream(iter(chunks), found.append)
    for _ in range(len(chunks) if taken is None else taken):
        next(stream)
    del stream
    return found[0]


START = {"type": "message_start", "message": {"usage": {"input_tokens": 10, "output_tokens": 1}}}
PIECE = {"type": "content_block_delta", "delta": {"text": "y"}}
END = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 9}}


async def test_an_async_stream_that_fails_in_the_middle_is_priced_in_part():
    async def failing():
        yield START
        raise ConnectionError

    found = []
    stream = TrackedStream(failing(), found.append)
    with pytest.raises(ConnectionError):
        _ = [chunk async for chunk in stream]
    assert found[0].unread == (CUT,)


def test_a_stream_that_is_left_in_the_middle_is_priced_in_part():
    assert seen([START, PIECE, END], 2).unread == (CUT,)
    assert seen([PIECE, START], 1).unread == ()


@pytest.mark.parametrize(
    "chunks",
    [
        [START, PIECE, END],
        [{"usage": None, "choices": [{}]}, {"usage": CHAT, "choices": []}],
        [{"usage": CHAT, "choices": [{"finish_reason": "stop"}]}],
        [{"data": {"usage": CHAT, "choices": [{"finish_reason": "stop"}]}}],
        [{"type": "response.completed", "response": {"usage": {"input_tokens": 1}}}],
        [{"usageMetadata": {"promptTokenCount": 1}, "candidates": [{"finishReason": "STOP"}]}],
    ],
)
def test_a_stream_that_is_left_after_its_last_count_is_whole(chunks):
    usage = seen(chunks)
    assert usage.total_tokens > 0
    assert usage.unread == ()


def test_chunks_that_are_not_the_last_do_not_end_a_stream():
    usage = {"usage": CHAT, "choices": [{"finish_reason": None}]}
    assert seen([usage]).unread == (CUT,)


@pytest.fixture
def model(tmp_path):
    plugins = art.Plugins()
    return art.Model(name="m", project="p", base_path=tmp_path, sinks=[], plugins=plugins)


async def test_a_call_of_which_a_part_has_no_price_is_counted_and_kept_in_its_receipt(
    model, caplog
):
    builder = model.metrics_builder("train")
    builder.register_model_pricing(
        "m", prompt_per_million=1e5, completion_per_million=1e5, web_search_per_thousand=10
    )
    names = {"provider": "acme", "model_name": "m"}
    for pages in (2, 3):
        odd = {"usage": CLAUDE | {"pages": pages, "server_tool_use": {"web_search_requests": 1}}}
        assert builder.add_response_cost("judge", odd, **names) == pytest.approx(1.31)
    builder.add_response_cost("judge", {"usage": CHAT}, **names, service_tier="batch")
    row = await model.log(split="train", step=1)
    await model.close()
    assert row.metrics["data/step_partly_priced_calls"] == 2.0
    assert row.metrics["costs/train/judge"] == pytest.approx(2.62 + 1.3)
    odd, plain = row.receipts
    assert (odd["calls"], odd["unread"]) == (2, ("usage.pages",))
    assert ("unread" in plain, plain["tier"]) == (False, "batch")
    assert caplog.text.count("usage.pages") == 1
    assert json.loads(row.to_line())["_receipts"][0]["unread"] == ["usage.pages"]


def test_the_docs_list_every_field_that_is_understood():
    page = (Path(__file__).parents[2] / "docs" / "costs.md").read_text()
    chat = (*readers._CHAT_READ, *readers._CHAT_WRITTEN, *readers._CHAT_WRITTEN_1H)
    read = (*chat, *providers._ANTHROPIC_COUNTS)
    known = (
        *readers._CHAT_KNOWN,
        *readers._RESPONSES_KNOWN,
        *providers._ANTHROPIC_KNOWN,
        *providers._COSTS,
    )
    fields = {path.rpartition(".")[2] for path in (*read, *known)}
    assert {name for name in fields if name not in page} == set()
