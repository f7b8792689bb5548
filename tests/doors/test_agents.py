"""OpenAI's Agents SDK, over chat completions and Responses."""

import pytest
from adding import ANSWER, call
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from pydantic import BaseModel

BOTH = pytest.mark.parametrize("protocol", ["chat", "responses"])
set_tracing_disabled(True)


class Sum(BaseModel):
    a: int
    b: int


@function_tool
def add(a: int, b: int) -> str:
    """Add two numbers."""
    return str(a + b)


def agent_of(endpoint, protocol, **more):
    client = AsyncOpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key, max_retries=0)
    kind = OpenAIChatCompletionsModel if protocol == "chat" else OpenAIResponsesModel
    model = kind(model=endpoint.model_name, openai_client=client)
    return Agent(name="door", instructions="Be brief.", model=model, **more)


@BOTH
async def test_plain(door, protocol):
    async with door.opened("hello") as endpoint:
        assert (await Runner.run(agent_of(endpoint, protocol), "hi")).final_output == "hello"


@BOTH
async def test_stream(door, protocol):
    async with door.opened(call(), "hello") as endpoint:
        run = Runner.run_streamed(agent_of(endpoint, protocol, tools=[add]), "hi")
        assert [event async for event in run.stream_events()]
        assert run.final_output == "hello"


@BOTH
async def test_two_turns(door, protocol):
    async with door.opened("one", "two") as endpoint:
        agent = agent_of(endpoint, protocol)
        first = await Runner.run(agent, "hi")
        more = [*first.to_input_list(), {"role": "user", "content": "on"}]
        assert (await Runner.run(agent, more)).final_output == "two"


@BOTH
async def test_tools(door, protocol):
    async with door.opened(f"<think>\nadd\n</think>\n\n{call()}", "3") as endpoint:
        agent = agent_of(endpoint, protocol, tools=[add])
        assert (await Runner.run(agent, "1 + 2")).final_output == "3"


@BOTH
async def test_parallel_tools(door, protocol):
    async with door.opened(call() + call(3), "3 and 5") as endpoint:
        agent = agent_of(endpoint, protocol, tools=[add])
        assert (await Runner.run(agent, "add")).final_output == "3 and 5"


@BOTH
async def test_forced_tool(door, protocol):
    async with door.opened(call(), "3", forced=True) as endpoint:
        settings = ModelSettings(tool_choice="required")
        agent = agent_of(endpoint, protocol, tools=[add], model_settings=settings)
        assert (await Runner.run(agent, "add")).final_output == "3"


@BOTH
async def test_schema(door, protocol):
    async with door.opened(ANSWER, forced=True) as endpoint:
        agent = agent_of(endpoint, protocol, output_type=Sum)
        assert (await Runner.run(agent, "add")).final_output == Sum(a=1, b=2)


@BOTH
async def test_a_handoff_is_a_conversation_of_its_own(door, protocol):
    hands_over = '<tool_call>{"name": "transfer_to_writer", "arguments": {}}</tool_call>'
    async with door.opened(call(), hands_over, "three", turns=[2, 1]) as endpoint:
        writer = agent_of(endpoint, protocol).clone(name="writer", instructions="Write.")
        agent = agent_of(endpoint, protocol, tools=[add], handoffs=[writer])
        assert (await Runner.run(agent, "1 + 2")).final_output == "three"


@BOTH
async def test_an_agent_that_is_a_tool_has_a_conversation_of_its_own(door, protocol):
    asks = '<tool_call>{"name": "ask", "arguments": {"input": "1 + 2"}}</tool_call>'
    async with door.opened(asks, "3", "It is 3.", turns=[2, 1]) as endpoint:
        inner = agent_of(endpoint, protocol).clone(instructions="Add.")
        tool = inner.as_tool(tool_name="ask", tool_description="Ask.")
        agent = agent_of(endpoint, protocol, tools=[tool])
        assert (await Runner.run(agent, "1 + 2")).final_output == "It is 3."


@BOTH
async def test_a_retry_and_a_shortened_conversation_are_branches(door, protocol):
    async with door.opened("one", "two", "again", "four", turns=[2, 1, 1]) as endpoint:
        agent = agent_of(endpoint, protocol)
        first = await Runner.run(agent, "hi")
        on = {"role": "user", "content": "on"}
        await Runner.run(agent, [*first.to_input_list(), on])
        assert (await Runner.run(agent, "hi")).final_output == "again"
        summary = {"role": "user", "content": "So far: one, two."}
        assert (await Runner.run(agent, [summary, on])).final_output == "four"
