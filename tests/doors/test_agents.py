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
