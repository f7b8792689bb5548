"""Anthropic's Messages at the endpoint: blocks, answers, events, errors, and counted tokens."""

from __future__ import annotations

import json

import httpx2
import pytest

from art_core.base.errors import EngineError
from art_core.endpoint.errors import RequestError
from art_core.endpoint.protocols.blocks import conversation
from art_core.endpoint.protocols.messages import KNOWN, MESSAGES, parse
from art_core.endpoint.protocols.stored import StoredResponses

ASKED = {"model": "agent", "max_tokens": 200, "messages": [{"role": "user", "content": "hi"}]}
TOOLS = [{"name": "add", "description": "Adds.", "input_schema": {"type": "object"}}]
CALL = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
THOUGHT = "<think>\nhm\n</think>\n\nwell"


def asked(**body):
    return parse({**ASKED, **body}, StoredResponses()).chat


@pytest.fixture
def say(http):
    async def said(**body):
        answer = await http.post("/messages", json={**ASKED, **body})
        assert answer.status_code == 200, answer.text
        return answer.json()

    return said


@pytest.fixture
def streamed(http):
    async def events(**body):
        text = (await http.post("/messages", json={**ASKED, "stream": True, **body})).text
        found = [block.split("\n") for block in text.strip().split("\n\n")]
        values = [json.loads(lines[1].removeprefix("data: ")) for lines in found]
        names = [lines[0].removeprefix("event: ") for lines in found]
        assert names == [value["type"] for value in values]
        return values

    return events


async def test_a_message_is_answered(engine, tokenizer, say):
    engine.lines, engine.cached = ["hello"], [3]
    answer = await say(system=[{"type": "text", "text": "Be brief."}], temperature=0.5)
    assert (answer["type"], answer["role"], answer["model"]) == ("message", "assistant", "agent@7")
    assert answer["content"] == [{"type": "text", "text": "hello"}]
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("end_turn", None)
    prompt = len(engine.asked[0][0])
    assert answer["usage"] == {
        "input_tokens": prompt - 3, "cache_read_input_tokens": 3,
        "cache_creation_input_tokens": 0, "output_tokens": 6,
    }  # fmt: skip
    assert [m["content"] for m in tokenizer.seen[0][0]] == ["Be brief.", "hi"]
    assert (answer["policy_version"], answer["sampling"]) == (7, {"temperature": 0.5})


async def test_each_reason_to_stop_has_its_name(engine, say):
    engine.lines = ["hello", "hello", CALL, "hello"]
    stopped = await say(stop_sequences=["xx", "l"], return_token_ids=True)
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "l")
    assert stopped["content"][0]["text"] == "he"
    assert stopped["token_ids"] == [*b"hello"[:3]]
    assert (await say(max_tokens=2))["stop_reason"] == "max_tokens"
    called = await say(tools=TOOLS)
    assert called["stop_reason"] == "tool_use"
    (block,) = called["content"]
    assert (block["type"], block["name"], block["input"]) == ("tool_use", "add", {"a": 1})
    assert (await say(stop_sequences=["xx"]))["stop_reason"] == "end_turn"


async def test_thoughts_are_a_block(engine, say):
    engine.lines = [THOUGHT + CALL]
    content = (await say(tools=TOOLS))["content"]
    assert [block["type"] for block in content] == ["thinking", "text", "tool_use"]
    assert (content[0]["thinking"], content[1]["text"]) == ("hm", "well")
    assert content[0]["signature"]


def test_blocks_are_chat_messages():
    found = conversation(
        [
            {"role": "user", "content": [{"type": "text", "text": "a"},
                                         {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "well"},
                {"type": "tool_use", "id": "1", "name": "add", "input": {"a": 1}},
                {"type": "tool_use", "id": "2", "name": "add"}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "1", "content": "3"},
                {"type": "tool_result", "tool_use_id": "2",
                 "content": [{"type": "text", "text": "4"}], "is_error": True},
                {"type": "text", "text": "on"}]},
        ]
    )  # fmt: skip
    assert [(m["role"], m["content"]) for m in found] == [
        ("user", "ab"), ("assistant", "well"), ("tool", "3"), ("tool", "4"), ("user", "on"),
    ]  # fmt: skip
    assert found[1]["reasoning_content"] == "hm"
    calls = [(c["id"], c["function"]["arguments"]) for c in found[1]["tool_calls"]]
    assert calls == [("1", '{"a": 1}'), ("2", "{}")]


async def test_a_stream_has_the_events_in_order(engine, streamed):
    engine.lines = [f"{THOUGHT}{CALL}{CALL}"]
    events = await streamed(tools=TOOLS)
    kinds = [each["type"] for each in events]
    once = [k for n, k in enumerate(kinds) if n == 0 or kinds[n - 1] != k]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert once == ["message_start", *(4 * block), "message_delta", "message_stop"]
    start = events[0]["message"]
    assert (start["content"], start["stop_reason"]) == ([], None)
    assert start["usage"] == {"input_tokens": len(engine.asked[0][0]), "output_tokens": 0}
    begun = [e for e in events if e["type"] == "content_block_start"]
    assert [e["index"] for e in begun] == [0, 1, 2, 3]
    assert [e["content_block"]["type"] for e in begun] == [
        "thinking",
        "text",
        "tool_use",
        "tool_use",
    ]
    assert begun[2]["content_block"]["input"] == {}
    deltas = [e["delta"] for e in events if e["type"] == "content_block_delta"]
    assert "".join(d.get("thinking", "") for d in deltas) == "hm"
    assert "".join(d.get("text", "") for d in deltas) == "well"
    assert [d["partial_json"] for d in deltas if "partial_json" in d] == ['{"a": 1}'] * 2
    assert sum(d["type"] == "signature_delta" for d in deltas) == 1
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == len(THOUGHT) + 2 * len(CALL) + 1


async def test_a_stream_that_fails_ends_with_an_error(engine, streamed):
    engine.lines, engine.failure, engine.fails_after = ["hello"], EngineError("it died"), 2
    events = await streamed()
    assert events[-1] == {
        "type": "error", "error": {"type": "api_error", "message": "it died"}, "request_id": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"max_tokens": None}, "max_tokens must be given"),
        ({"max_tokens": 0}, "max_tokens must be a whole number"),
        ({"messages": []}, "a list of at least one message"),
        ({"messages": [3]}, "messages[0].role"),
        ({"messages": [{"role": "cat"}]}, "one of assistant, system, user"),
        ({"messages": [{"role": "user"}]}, "messages[0].content must be"),
        ({"messages": [{"role": "user", "content": [{}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, '"type": "base64"'),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "tool_use_id"),
        ({"messages": [{"role": "assistant", "content": "so"}]}, "end with a message of the user"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use"}]}]}, "[0].id must"),
        ({"messages": [{"role": "assistant", "content": [
            {"type": "tool_use", "id": "a", "name": "b", "input": 3}]}]}, "[0].input must"),
        ({"system": 3}, "system must be"),
        ({"tools": 3}, "tools must be a list"),
        ({"tools": [3]}, "tools[0] must be of the form"),
        ({"tools": [{"name": "bash", "type": "bash_20250124"}]}, "no hosted tools here"),
        ({"tool_choice": "any"}, "tool_choice.type must be one of"),
        ({"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}, "tools": TOOLS},
         "tool_choice.disable_parallel_tool_use is not supported"),
        ({"output_config": 3}, "output_config must be an object"),
        ({"output_config": {"effort": "low"}}, "output_config.effort is not supported"),
        ({"output_format": {"type": "regex"}}, "output_format must be of the form"),
        ({"thinking": {"type": "deep"}}, "thinking.type must be one of"),
        ({"thinking": {"type": "disabled"}, "chat_template_kwargs": 3}, "must be an object"),
        ({"top_k": 5}, "top_k is not supported"),
        ({"stop_sequences": 3}, "stop_sequences must be"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers is not supported"),
        ({"max_tokns": 3}, "did you mean 'max_tokens'"),
    ],
)  # fmt: skip
async def test_what_is_not_supported_is_refused_by_its_name(http, engine, changed, reason):
    answer = await http.post("/messages", json={**ASKED, **changed})
    body = answer.json()
    assert (answer.status_code, body["type"], body["error"]["type"]) == (
        400, "error", "invalid_request_error",
    )  # fmt: skip
    assert reason.lower() in body["error"]["message"].lower()
    assert not engine.asked


@pytest.mark.parametrize(
    ("status", "kind"),
    [(404, "not_found_error"), (409, "invalid_request_error"), (503, "api_error")],
)
def test_an_error_has_the_type_of_its_status(status, kind):
    assert MESSAGES.error(RequestError(status, "x"))["error"]["type"] == kind


def test_a_forced_form_is_that_of_the_chat_completion():
    form = {"type": "json_schema", "schema": {"type": "object"}}
    expected = {"name": "answer", "schema": {"type": "object"}, "strict": True}
    expected = {"type": "json_schema", "json_schema": expected}
    assert asked(output_format=form)["response_format"] == expected
    assert asked(output_config={"format": form})["response_format"] == expected
    assert asked(tool_choice={"type": "any"})["tool_choice"] == "required"
    named = asked(tool_choice={"type": "tool", "name": "add"}, tools=TOOLS)
    assert named["tool_choice"] == {"type": "function", "function": {"name": "add"}}
    assert named["tools"][0]["function"]["description"] == "Adds."


def test_thinking_is_a_variable_of_the_template():
    for kind, on in (("enabled", True), ("adaptive", True), ("disabled", False)):
        chat = asked(thinking={"type": kind}, chat_template_kwargs={"a": 1})
        assert chat["chat_template_kwargs"] == {"enable_thinking": on, "a": 1}


async def test_the_key_may_come_in_anthropics_header(host, engine):
    root = host.base_url
    async with httpx2.AsyncClient(base_url=root, headers={"x-api-key": host.api_key}) as http:
        assert (await http.post("/messages", json=ASKED)).status_code == 200
        http.headers["x-api-key"] = "wrong"
        answer = await http.post("/messages", json=ASKED)
    assert (answer.status_code, answer.json()["error"]["type"]) == (401, "authentication_error")


async def test_tokens_are_counted_as_the_prompt_has_them(engine, http, say):
    body = {"model": "agent", "system": "Be brief.", "messages": ASKED["messages"]}
    counted = (await http.post("/messages/count_tokens", json=body)).json()
    answer = await say(system="Be brief.")
    assert counted == {"input_tokens": answer["usage"]["input_tokens"]}
    assert len(engine.asked) == 1
    refused = await http.post("/messages/count_tokens", json={**body, "top_k": 3})
    assert (refused.status_code, refused.json()["type"]) == (400, "error")
    unknown = await http.post("/messages/count_tokens", json={**body, "model": "other"})
    assert unknown.status_code == 404


def test_parameters_are_known_once():
    assert not KNOWN.parameters & KNOWN.without_effect
    assert not KNOWN.parameters & KNOWN.neutral.keys()
