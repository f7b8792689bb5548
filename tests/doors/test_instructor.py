"""Instructor, over chat completions, Responses and Messages: forms that it parses itself."""

import instructor
import pytest
from adding import ANSWER, call
from anthropic import AsyncAnthropic
from instructor import Mode
from openai import AsyncOpenAI
from pydantic import BaseModel

ALL = pytest.mark.parametrize("protocol", ["chat", "responses", "messages"])
HI = [{"role": "user", "content": "add"}]


class Sum(BaseModel):
    """A sum."""

    a: int
    b: int


def client_of(endpoint, protocol, mode):
    url, key = endpoint.base_url, endpoint.api_key
    if protocol == "messages":
        inner = AsyncAnthropic(base_url=url.removesuffix("/v1"), api_key=key, max_retries=0)
        return instructor.from_anthropic(inner, mode=mode)
    return instructor.from_openai(AsyncOpenAI(base_url=url, api_key=key, max_retries=0), mode=mode)


async def asking(client, protocol):
    limit = {"max_tokens": 500} if protocol == "messages" else {}
    answer = await client.chat.completions.create(
        model="agent", messages=HI, response_model=Sum, max_retries=0, **limit
    )
    return answer.model_dump()


@ALL
async def test_forced_tool(door, protocol):
    modes = {
        "chat": Mode.TOOLS,
        "responses": Mode.RESPONSES_TOOLS,
        "messages": Mode.ANTHROPIC_TOOLS,
    }
    async with door.opened(call().replace('"add"', '"Sum"'), forced=True) as endpoint:
        client = client_of(endpoint, protocol, modes[protocol])
        assert await asking(client, protocol) == {"a": 1, "b": 2}


@pytest.mark.parametrize("protocol", ["chat", "messages"])
async def test_plain(door, protocol):
    modes = {"chat": Mode.MD_JSON, "messages": Mode.ANTHROPIC_JSON}
    async with door.opened(f"```json\n{ANSWER}\n```") as endpoint:
        client = client_of(endpoint, protocol, modes[protocol])
        assert await asking(client, protocol) == {"a": 1, "b": 2}


@pytest.mark.parametrize("protocol", ["chat"])
async def test_schema(door, protocol):
    async with door.opened(ANSWER, forced=True) as endpoint:
        client = client_of(endpoint, protocol, Mode.JSON_SCHEMA)
        assert await asking(client, protocol) == {"a": 1, "b": 2}
