"""Whatever a body of another protocol holds, it is read or refused."""

from __future__ import annotations

import random
from typing import Any

import pytest

from art_core.endpoint.errors import RequestError
from art_core.endpoint.protocols.answers import PROTOCOLS
from art_core.endpoint.protocols.stored import StoredResponses
from art_core.endpoint.request import chat_request

SCHEMA = {"type": "json_schema", "name": "a", "schema": {}}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/responses": {
        "model": "m", "instructions": "x", "max_output_tokens": 3, "stop": ["a"], "stream": True,
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "h"}]},
            {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "a", "output": "x"},
        ],
        "tools": [{"type": "function", "name": "f", "parameters": {}}],
        "tool_choice": {"type": "function", "name": "f"}, "text": {"format": SCHEMA},
        "reasoning": {"effort": None}, "include": ["message.output_text.logprobs"],
    },
    "/v1/messages": {
        "model": "m", "max_tokens": 3, "system": [{"type": "text", "text": "a"}],
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "h"}, {"type": "text", "text": "a"},
                {"type": "tool_use", "id": "a", "name": "f", "input": {"a": 1}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a",
                                          "content": [{"type": "text", "text": "x"}]}]},
        ],
        "tools": [{"name": "f", "input_schema": {}}], "tool_choice": {"type": "tool", "name": "f"},
        "thinking": {"type": "enabled"}, "output_config": {"format": SCHEMA},
        "stop_sequences": ["a"], "stream": True, "chat_template_kwargs": {},
    },
    "/v1/completions": {
        "model": "m", "prompt": ["a"], "max_tokens": 3, "logprobs": 1, "n": 1, "stop": "a",
        "stream": True, "stream_options": {"include_usage": True}, "suffix": "", "logit_bias": {},
    },
}  # fmt: skip
ODD = [None, True, 0, -1, 3.5, "", "x", [], {}, ["x"], [3], [[]], [{}], {"type": ["x"]},
       {"type": {}}, {"type": "x"}, {"a": {"b": [1]}}, 10**30, "\ud800"]  # fmt: skip


def changed(value: Any, draw: random.Random) -> Any:
    if draw.random() < 0.15:
        return draw.choice(ODD)
    if isinstance(value, dict):
        return {name: changed(each, draw) for name, each in value.items()}
    return [changed(each, draw) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("path", BODIES)
def test_a_body_is_read_or_refused(path: str) -> None:
    protocol, read, refused = PROTOCOLS[path], 0, 0
    for seed in range(400):
        draw = random.Random(seed)
        body = {**BODIES[path]}
        for name in draw.sample(sorted(body), 2):
            body[name] = changed(body[name], draw)
        try:
            asked = protocol.parse(body, StoredResponses())
            read += 1
            chat_request(asked.chat)
        except RequestError as error:
            refused += bool(protocol.error(protocol.own(error)))
    assert (read > 0, refused > 0) == (True, True)


async def test_arguments_with_too_many_levels_are_refused(http) -> None:
    arguments: dict[str, Any] = {}
    for _ in range(150):
        arguments = {"a": arguments}
    block = {"type": "tool_use", "id": "a", "name": "f", "input": arguments}
    messages = [{"role": "assistant", "content": [block]}, {"role": "user", "content": "hi"}]
    body = {"model": "agent", "max_tokens": 3, "messages": messages}
    answer = await http.post("/messages", json=body)
    assert (answer.status_code, "at most 100 levels" in answer.text) == (400, True)


async def test_a_tool_with_too_many_levels_is_refused(http) -> None:
    parameters: dict[str, Any] = {}
    for _ in range(300):
        parameters = {"a": parameters}
    tools = [{"type": "function", "name": "f", "parameters": parameters}]
    for stream in (False, True):
        body = {"model": "agent", "input": "hi", "tools": tools, "stream": stream}
        answer = await http.post("/responses", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools")
