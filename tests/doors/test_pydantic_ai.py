"""Pydantic AI, over chat completions, Responses and Messages."""

import pytest
from adding import ANSWER, call
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

ALL = pytest.mark.parametrize("protocol", ["chat", "responses", "messages"])


class Sum(BaseModel):
    a: int
    b: int


def agent_of(endpoint, protocol, **more):
    url, key = endpoint.base_url, endpoint.api_key
    if protocol == "messages":
        provider = AnthropicProvider(base_url=url.removesuffix("/v1"), api_key=key)
        model = AnthropicModel(endpoint.model_name, provider=provider)
    else:
        kind = OpenAIChatModel if protocol == "chat" else OpenAIResponsesModel
        model = kind(endpoint.model_name, provider=OpenAIProvider(base_url=url, api_key=key))
    return Agent(model, retries=0, **more)


def adding(agent):
    @agent.tool_plain
    def add(a: int, b: int) -> str:
        """Add two numbers."""
        return str(a + b)

    return agent


@ALL
async def test_plain(door, protocol):
    async with door.opened("hello") as endpoint:
        assert (await agent_of(endpoint, protocol).run("hi")).output == "hello"


@ALL
async def test_stream(door, protocol):
    async with door.opened("<think>\nhm\n</think>\n\nhello") as endpoint:
        run = agent_of(endpoint, protocol).run_stream("hi")
        async with run as answer:
            parts = [part async for part in answer.stream_text(delta=True)]
    assert "".join(parts) == "hello"


@ALL
async def test_two_turns(door, protocol):
    async with door.opened("one", "two") as endpoint:
        agent = agent_of(endpoint, protocol)
        first = await agent.run("hi")
        second = await agent.run("on", message_history=first.all_messages())
        assert second.output == "two"


@ALL
async def test_tools(door, protocol):
    async with door.opened(f"<think>\nadd\n</think>\n\n{call()}", "3") as endpoint:
        assert (await adding(agent_of(endpoint, protocol)).run("add")).output == "3"


@ALL
async def test_parallel_tools(door, protocol):
    async with door.opened(call() + call(3), "3 and 5") as endpoint:
        assert (await adding(agent_of(endpoint, protocol)).run("add")).output == "3 and 5"


@ALL
async def test_forced_tool(door, protocol):
    line = call().replace('"add"', '"final_result"')
    async with door.opened(line, forced=True) as endpoint:
        agent = agent_of(endpoint, protocol, output_type=ToolOutput(Sum))
        assert (await agent.run("add")).output == Sum(a=1, b=2)


@pytest.mark.parametrize("protocol", ["chat", "responses"])
async def test_schema(door, protocol):
    async with door.opened(ANSWER, forced=True) as endpoint:
        agent = agent_of(endpoint, protocol, output_type=NativeOutput(Sum))
        assert (await agent.run("add")).output == Sum(a=1, b=2)
