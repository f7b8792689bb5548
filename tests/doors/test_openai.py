"""The client of OpenAI: chat completions, Responses and Completions."""

import asyncio

import openai
import pytest
from adding import ANSWER, CHAT_TOOL, PARAMETERS, RESPONSES_TOOL, add, call
from pydantic import BaseModel

HI = [{"role": "user", "content": "hi"}]
BOTH = pytest.mark.parametrize("protocol", ["chat", "responses"])
ALL = pytest.mark.parametrize("protocol", ["chat", "responses", "completions"])


class Sum(BaseModel):
    a: int
    b: int


def client_of(endpoint, kind=openai.AsyncOpenAI):
    return kind(base_url=endpoint.base_url, api_key=endpoint.api_key, max_retries=0)


def asking(client, protocol, **more):
    """Return the request of a protocol for the smallest prompt."""
    if protocol == "chat":
        return client.chat.completions.create(model="agent", **{"messages": HI, **more})
    if protocol == "responses":
        return client.responses.create(model="agent", **{"input": "hi", **more})
    return client.completions.create(model="agent", **{"prompt": "hi", **more})


def text_of(protocol, answer):
    if protocol == "responses":
        return answer.output_text
    choice = answer.choices[0]
    return choice.message.content if protocol == "chat" else choice.text


@ALL
async def test_plain(door, protocol):
    async with door.opened("hello", "again") as endpoint:
        async with client_of(endpoint) as client:
            assert text_of(protocol, await asking(client, protocol)) == "hello"
        with client_of(endpoint, openai.OpenAI) as client:
            answer = await asyncio.to_thread(asking, client, protocol)
            assert text_of(protocol, answer) == "again"


@ALL
async def test_stream(door, protocol):
    async with door.opened("hello", "again") as endpoint, client_of(endpoint) as client:
        chunks = [each async for each in await asking(client, protocol, stream=True)]
        if protocol == "responses":
            texts = [e.delta for e in chunks if e.type == "response.output_text.delta"]
            async with client.responses.stream(model="agent", input="hi") as stream:
                assert (await stream.get_final_response()).output_text == "again"
        elif protocol == "chat":
            texts = [chunk.choices[0].delta.content or "" for chunk in chunks]
            async with client.chat.completions.stream(model="agent", messages=HI) as stream:
                whole = await stream.get_final_completion()
            assert whole.choices[0].message.content == "again"
        else:
            texts = [chunk.choices[0].text for chunk in chunks]
            await asking(client, protocol)
    assert "".join(texts) == "hello"


@ALL
async def test_two_turns(door, protocol):
    async with door.opened("one", "two") as endpoint, client_of(endpoint) as client:
        first = await asking(client, protocol)
        if protocol == "responses":
            second = await asking(client, protocol, previous_response_id=first.id, input="on")
        elif protocol == "chat":
            more = [first.choices[0].message, {"role": "user", "content": "on"}]
            second = await asking(client, protocol, messages=[*HI, *more])
        else:
            second = await asking(client, protocol, prompt="hi" + text_of(protocol, first))
        assert text_of(protocol, second) == "two"


async def with_chat_tools(client):
    messages = [*HI]
    while True:
        answer = await asking(client, "chat", messages=messages, tools=[CHAT_TOOL])
        message = answer.choices[0].message
        messages.append(message)
        if not message.tool_calls:
            return message.content
        messages += [
            {"role": "tool", "tool_call_id": c.id, "content": add(c.function.arguments)}
            for c in message.tool_calls
        ]


async def with_response_tools(client, *, stored):
    items, previous = [*HI], None
    while True:
        more = {"previous_response_id": previous} if stored else {}
        answer = await asking(client, "responses", input=items, tools=[RESPONSES_TOOL], **more)
        calls = [item for item in answer.output if item.type == "function_call"]
        if not calls:
            return answer.output_text
        results = [
            {"type": "function_call_output", "call_id": c.call_id, "output": add(c.arguments)}
            for c in calls
        ]
        items = results if stored else [*items, *answer.output, *results]
        previous = answer.id


@BOTH
@pytest.mark.parametrize("stored", [False, True])
async def test_tools(door, protocol, stored):
    async with (
        door.opened(f"<think>\nadd\n</think>\n\n{call()}", "3") as endpoint,
        client_of(endpoint) as client,
    ):
        if protocol == "chat":
            assert await with_chat_tools(client) == "3"
        else:
            assert await with_response_tools(client, stored=stored) == "3"


@BOTH
async def test_parallel_tools(door, protocol):
    async with door.opened(call() + call(3), "3 and 5") as endpoint, client_of(endpoint) as client:
        if protocol == "chat":
            assert await with_chat_tools(client) == "3 and 5"
        else:
            assert await with_response_tools(client, stored=False) == "3 and 5"


@BOTH
async def test_forced_tool(door, protocol):
    async with door.opened(call(), forced=True) as endpoint, client_of(endpoint) as client:
        if protocol == "chat":
            choice = {"type": "function", "function": {"name": "add"}}
            answer = await asking(client, protocol, tools=[CHAT_TOOL], tool_choice=choice)
            assert answer.choices[0].message.tool_calls
        else:
            choice = {"type": "function", "name": "add"}
            answer = await asking(client, protocol, tools=[RESPONSES_TOOL], tool_choice=choice)
            assert answer.output[0].type == "function_call"


@BOTH
async def test_schema(door, protocol):
    async with door.opened(ANSWER, ANSWER, forced=True) as endpoint, client_of(endpoint) as client:
        if protocol == "chat":
            parsed = await client.chat.completions.parse(
                model="agent", messages=HI, response_format=Sum
            )
            assert parsed.choices[0].message.parsed == Sum(a=1, b=2)
            form = {"type": "json_schema", "json_schema": {"name": "s", "schema": PARAMETERS}}
            await asking(client, protocol, response_format=form)
        else:
            parsed = await client.responses.parse(model="agent", input="hi", text_format=Sum)
            assert parsed.output_parsed == Sum(a=1, b=2)
            form = {"type": "json_schema", "name": "s", "schema": PARAMETERS}
            await asking(client, protocol, text={"format": form})
