"""smolagents, over chat completions."""

import asyncio

import pytest
from adding import call
from smolagents import CodeAgent, OpenAIModel, Tool, ToolCallingAgent

CHAT = pytest.mark.parametrize("protocol", ["chat"])
HI = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]


class Add(Tool):
    name = "add"
    description = "Add two numbers."
    inputs = {  # noqa: RUF012
        "a": {"type": "integer", "description": "one"},
        "b": {"type": "integer", "description": "another"},
    }
    output_type = "string"

    def forward(self, a: int, b: int) -> str:
        return str(a + b)


def model_of(endpoint):
    return OpenAIModel(endpoint.model_name, api_base=endpoint.base_url, api_key=endpoint.api_key)


def final(answer):
    return (
        f'<tool_call>{{"name": "final_answer", "arguments": {{"answer": "{answer}"}}}}</tool_call>'
    )


@CHAT
async def test_plain(door, protocol):
    async with door.opened("hello") as endpoint:
        assert (await asyncio.to_thread(model_of(endpoint).generate, HI)).content == "hello"


@CHAT
async def test_stream(door, protocol):
    async with door.opened("hello") as endpoint:
        parts = await asyncio.to_thread(lambda: [*model_of(endpoint).generate_stream(HI)])
        assert "".join(part.content or "" for part in parts) == "hello"


@CHAT
async def test_two_turns(door, protocol):
    async with door.opened("<code>\nx = 1 + 2\n", "<code>\nfinal_answer(x)\n") as endpoint:
        agent = CodeAgent(tools=[], model=model_of(endpoint), verbosity_level=0)
        assert await asyncio.to_thread(agent.run, "add") == 3


@CHAT
async def test_forced_tool(door, protocol):
    async with door.opened(call(), final(3), forced=True) as endpoint:
        agent = ToolCallingAgent(tools=[Add()], model=model_of(endpoint), verbosity_level=0)
        assert await asyncio.to_thread(agent.run, "add") == "3"


@CHAT
async def test_forced_parallel_tools(door, protocol):
    async with door.opened(call() + call(3), final("3 and 5"), forced=True) as endpoint:
        agent = ToolCallingAgent(tools=[Add()], model=model_of(endpoint), verbosity_level=0)
        assert await asyncio.to_thread(agent.run, "add") == "3 and 5"
