"""litellm, over all four protocols."""

import json

import litellm
import pytest
from adding import ANSWER, CHAT_TOOL, MESSAGES_TOOL, PARAMETERS, RESPONSES_TOOL, add, call

HI = [{"role": "user", "content": "hi"}]
CHATS = pytest.mark.parametrize("protocol", ["chat", "messages"])
"""litellm's `acompletion` speaks either, by the prefix of the model."""
ALL = pytest.mark.parametrize("protocol", ["chat", "messages", "responses", "completions"])


async def asking(endpoint, protocol, **more):
    options = {"api_key": endpoint.api_key, "max_retries": 0, **more}
    if protocol == "responses":
        options = {"input": "hi", "api_base": endpoint.base_url, **options}
        return await litellm.aresponses(model="openai/agent", **options)
    if protocol == "completions":
        options = {"prompt": "hi", "api_base": endpoint.base_url, **options}
        return await litellm.atext_completion(model="text-completion-openai/agent", **options)
    if protocol == "messages":
        root = endpoint.base_url.removesuffix("/v1")
        options = {"messages": HI, "api_base": root, "max_tokens": 500, **options}
        return await litellm.acompletion(model="anthropic/agent", **options)
    options = {"messages": HI, "api_base": endpoint.base_url, **options}
    return await litellm.acompletion(model="openai/agent", **options)


def text_of(protocol, answer):
    if protocol == "responses":
        return answer.output[-1].content[0].text
    choice = answer.choices[0]
    return choice.text if protocol == "completions" else choice.message.content


@ALL
async def test_plain(door, protocol):
    async with door.opened("hello") as endpoint:
        assert text_of(protocol, await asking(endpoint, protocol)) == "hello"


@ALL
async def test_stream(door, protocol):
    async with door.opened("hello") as endpoint:
        chunks = [each async for each in await asking(endpoint, protocol, stream=True)]
        if protocol == "responses":
            texts = [e.delta for e in chunks if e.type == "response.output_text.delta"]
        elif protocol == "completions":
            texts = [c.choices[0].text or "" for c in chunks]
        else:
            texts = [c.choices[0].delta.content or "" for c in chunks]
        assert "".join(texts) == "hello"


@ALL
async def test_two_turns(door, protocol):
    async with door.opened("one", "two") as endpoint:
        first = await asking(endpoint, protocol)
        on = {"role": "user", "content": "on"}
        if protocol == "responses":
            items = [*HI, *[item.model_dump() for item in first.output], on]
            second = await asking(endpoint, protocol, input=items)
        elif protocol == "completions":
            second = await asking(endpoint, protocol, prompt="hione")
        else:
            second = await asking(endpoint, protocol, messages=[*HI, first.choices[0].message, on])
        assert text_of(protocol, second) == "two"


async def with_tools(endpoint, protocol):
    messages = [*HI]
    while True:
        answer = await asking(endpoint, protocol, messages=messages, tools=[CHAT_TOOL])
        message = answer.choices[0].message
        messages.append(message)
        if not message.tool_calls:
            return message.content
        messages += [
            {"role": "tool", "tool_call_id": c.id, "content": add(c.function.arguments)}
            for c in message.tool_calls
        ]


async def with_response_tools(endpoint):
    items = [*HI]
    while True:
        answer = await asking(endpoint, "responses", input=items, tools=[RESPONSES_TOOL])
        calls = [item for item in answer.output if item.type == "function_call"]
        if not calls:
            return text_of("responses", answer)
        items += [item.model_dump() for item in answer.output]
        items += [
            {"type": "function_call_output", "call_id": c.call_id, "output": add(c.arguments)}
            for c in calls
        ]


TOOLS = pytest.mark.parametrize("protocol", ["chat", "messages", "responses"])


@TOOLS
async def test_tools(door, protocol):
    async with door.opened(call(), "3") as endpoint:
        if protocol == "responses":
            assert await with_response_tools(endpoint) == "3"
        else:
            assert await with_tools(endpoint, protocol) == "3"


@TOOLS
async def test_parallel_tools(door, protocol):
    async with door.opened(call() + call(3), "3 and 5") as endpoint:
        if protocol == "responses":
            assert await with_response_tools(endpoint) == "3 and 5"
        else:
            assert await with_tools(endpoint, protocol) == "3 and 5"


@TOOLS
async def test_forced_tool(door, protocol):
    async with door.opened(call(), forced=True) as endpoint:
        if protocol == "responses":
            answer = await asking(
                endpoint, protocol, tools=[RESPONSES_TOOL], tool_choice="required"
            )
            assert answer.output[0].type == "function_call"
        else:
            choice = {"type": "function", "function": {"name": "add"}}
            answer = await asking(endpoint, protocol, tools=[CHAT_TOOL], tool_choice=choice)
            assert answer.choices[0].message.tool_calls


async def test_anthropic_messages_of_litellm(door):
    async with door.opened("hello", call()) as endpoint:
        options = {"api_base": endpoint.base_url.removesuffix("/v1"), "api_key": endpoint.api_key}
        asked = {"model": "anthropic/agent", "max_tokens": 500, "messages": HI}
        answer = await litellm.anthropic_messages(**asked, **options)
        assert answer["content"][0]["text"] == "hello"
        called = await litellm.anthropic_messages(**asked, tools=[MESSAGES_TOOL], **options)
        assert called["content"][0]["input"] == json.loads(ANSWER)


@pytest.mark.parametrize("protocol", ["chat", "responses"])
async def test_schema(door, protocol):
    async with door.opened(ANSWER, forced=True) as endpoint:
        if protocol == "chat":
            form = {"type": "json_schema", "json_schema": {"name": "s", "schema": PARAMETERS}}
            answer = await asking(endpoint, protocol, response_format=form)
        else:
            form = {"type": "json_schema", "name": "s", "schema": PARAMETERS}
            answer = await asking(endpoint, protocol, text={"format": form})
        assert text_of(protocol, answer) == ANSWER
