"""LangChain, over chat completions, Responses and Messages."""

import pytest
from adding import ANSWER, call
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

# LangChain keeps one client for an address, which belongs to the first event loop.
pytestmark = pytest.mark.asyncio(loop_scope="session")
ALL = pytest.mark.parametrize("protocol", ["chat", "responses", "messages"])


class Sum(BaseModel):
    """A sum."""

    a: int
    b: int


@tool
def add(a: int, b: int) -> str:
    """Add two numbers."""
    return str(a + b)


def model_of(endpoint, protocol):
    options = {"model": endpoint.model_name, "api_key": endpoint.api_key, "max_retries": 0}
    if protocol == "messages":
        root = endpoint.base_url.removesuffix("/v1")
        return ChatAnthropic(base_url=root, max_tokens=500, **options)
    responses = protocol == "responses"
    return ChatOpenAI(
        base_url=endpoint.base_url, use_responses_api=responses, stream_usage=True, **options
    )


@ALL
async def test_plain(door, protocol):
    async with door.opened("hello") as endpoint:
        assert (await model_of(endpoint, protocol).ainvoke("hi")).text == "hello"


@ALL
async def test_stream(door, protocol):
    async with door.opened("hello") as endpoint:
        parts = [part async for part in model_of(endpoint, protocol).astream("hi")]
        whole = sum(parts[1:], parts[0])
        assert (whole.text, whole.usage_metadata["output_tokens"]) == ("hello", 6)


@ALL
async def test_two_turns(door, protocol):
    async with door.opened("one", "two") as endpoint:
        model, hi = model_of(endpoint, protocol), HumanMessage("hi")
        first = await model.ainvoke([hi])
        assert (await model.ainvoke([hi, first, HumanMessage("on")])).text == "two"


async def with_tools(model):
    messages = [HumanMessage("add")]
    while True:
        answer = await model.bind_tools([add]).ainvoke(messages)
        messages.append(answer)
        if not answer.tool_calls:
            return answer.text
        for each in answer.tool_calls:
            result = await add.ainvoke(each["args"])
            messages.append(ToolMessage(result, tool_call_id=each["id"]))


@ALL
async def test_tools(door, protocol):
    async with door.opened(f"<think>\nadd\n</think>\n\n{call()}", "3") as endpoint:
        assert await with_tools(model_of(endpoint, protocol)) == "3"


@ALL
async def test_parallel_tools(door, protocol):
    async with door.opened(call() + call(3), "3 and 5") as endpoint:
        assert await with_tools(model_of(endpoint, protocol)) == "3 and 5"


@ALL
async def test_forced_tool(door, protocol):
    async with door.opened(call(), forced=True) as endpoint:
        model = model_of(endpoint, protocol).bind_tools([add], tool_choice="add")
        (called,) = (await model.ainvoke("add")).tool_calls
        assert called["args"] == {"a": 1, "b": 2}


@ALL
async def test_schema(door, protocol):
    async with door.opened(ANSWER, forced=True) as endpoint:
        model = model_of(endpoint, protocol).with_structured_output(Sum, method="json_schema")
        assert await model.ainvoke("add") == Sum(a=1, b=2)
