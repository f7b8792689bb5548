"""The client of Anthropic: Messages."""

import asyncio

import anthropic
import pytest
from adding import ANSWER, MESSAGES_TOOL, PARAMETERS, add, call

HI = [{"role": "user", "content": "hi"}]
ASKED = {"model": "agent", "max_tokens": 500}
MESSAGES = pytest.mark.parametrize("protocol", ["messages"])


def client_of(endpoint, kind=anthropic.AsyncAnthropic):
    root = endpoint.base_url.removesuffix("/v1")
    return kind(base_url=root, api_key=endpoint.api_key, max_retries=0)


@MESSAGES
async def test_plain(door, protocol):
    async with door.opened("hello", "again") as endpoint:
        async with client_of(endpoint) as client:
            answer = await client.messages.create(**ASKED, messages=HI, system="Be brief.")
            assert answer.content[0].text == "hello"
            counted = await client.messages.count_tokens(
                model="agent", messages=HI, system="Be brief."
            )
            assert counted.input_tokens == answer.usage.input_tokens
        with client_of(endpoint, anthropic.Anthropic) as client:
            again = await asyncio.to_thread(client.messages.create, **ASKED, messages=HI)
            assert again.content[0].text == "again"


@MESSAGES
async def test_stream(door, protocol):
    async with (
        door.opened("<think>\nhm\n</think>\n\nhello", "again") as endpoint,
        client_of(endpoint) as client,
    ):
        async with client.messages.stream(**ASKED, messages=HI) as stream:
            text = "".join([part async for part in stream.text_stream])
            final = await stream.get_final_message()
        assert (text, final.content[0].thinking, final.content[1].text) == ("hello", "hm", "hello")
        assert (final.stop_reason, final.usage.output_tokens > 0) == ("end_turn", True)
        stream = await client.messages.create(**ASKED, messages=HI, stream=True)
        assert [event.type async for event in stream][-1] == "message_stop"


@MESSAGES
async def test_two_turns(door, protocol):
    async with door.opened("one", "two") as endpoint, client_of(endpoint) as client:
        first = await client.messages.create(**ASKED, messages=HI)
        more = [{"role": "assistant", "content": first.content}, {"role": "user", "content": "on"}]
        second = await client.messages.create(**ASKED, messages=[*HI, *more])
        assert second.content[0].text == "two"


async def with_tools(client):
    messages = [*HI]
    while True:
        answer = await client.messages.create(**ASKED, messages=messages, tools=[MESSAGES_TOOL])
        messages.append({"role": "assistant", "content": answer.content})
        calls = [block for block in answer.content if block.type == "tool_use"]
        if not calls:
            return answer.content[0].text
        results = [
            {"type": "tool_result", "tool_use_id": c.id, "content": add(c.input)} for c in calls
        ]
        messages.append({"role": "user", "content": results})


@MESSAGES
async def test_tools(door, protocol):
    line = f"<think>\nadd\n</think>\n\n{call()}"
    async with door.opened(line, "3") as endpoint, client_of(endpoint) as client:
        assert await with_tools(client) == "3"


@MESSAGES
async def test_parallel_tools(door, protocol):
    async with door.opened(call() + call(3), "3 and 5") as endpoint, client_of(endpoint) as client:
        assert await with_tools(client) == "3 and 5"


@MESSAGES
async def test_forced_tool(door, protocol):
    async with door.opened(call(), forced=True) as endpoint, client_of(endpoint) as client:
        choice = {"type": "tool", "name": "add", "disable_parallel_tool_use": True}
        answer = await client.messages.create(
            **ASKED, messages=HI, tools=[MESSAGES_TOOL], tool_choice=choice
        )
        assert answer.content[0].input == {"a": 1, "b": 2}


@MESSAGES
async def test_schema(door, protocol):
    async with door.opened(ANSWER, forced=True) as endpoint, client_of(endpoint) as client:
        form = {"format": {"type": "json_schema", "schema": PARAMETERS}}
        answer = await client.messages.create(**ASKED, messages=HI, output_config=form)
        assert answer.content[0].text == ANSWER


@MESSAGES
async def test_a_sub_agent_a_retry_and_a_shortened_conversation_are_branches(door, protocol):
    lines = "one", "two", "sub", "again", "four"
    async with (
        door.opened(*lines, turns=[2, 1, 1, 1]) as endpoint,
        client_of(endpoint) as client,
    ):
        first = await client.messages.create(**ASKED, messages=HI)
        answered = {"role": "assistant", "content": first.content}
        on = {"role": "user", "content": "on"}
        await client.messages.create(**ASKED, messages=[*HI, answered, on])
        await client.messages.create(**ASKED, messages=HI, system="You help an agent.")
        await client.messages.create(**ASKED, messages=HI)
        summary = [{"role": "user", "content": "So far: one, two."}, on]
        last = await client.messages.create(**ASKED, messages=summary)
        assert last.content[0].text == "four"
