"""The openai package and the AI SDK of npm, in Node.js."""

import asyncio
import os
import shutil
from pathlib import Path

import pytest
from adding import ANSWER, call

PLACE = os.environ.get("DOORS_NPM", "")
"""A copy of the folder `npm` here, with its packages; `make doors` makes it."""
pytestmark = [
    pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed"),
    pytest.mark.skipif(not PLACE, reason="DOORS_NPM is not set: `make doors` sets it"),
]
SPOKEN = {
    "openai": ("chat", "responses", "completions"),
    "ai": ("chat", "responses", "messages", "completions"),
}


def rows(*without):
    pairs = [(name, each) for name, spoken in SPOKEN.items() for each in spoken]
    return pytest.mark.parametrize(
        ("client", "protocol"), [pair for pair in pairs if pair[1] not in without]
    )


ALL, WITH_TOOLS = rows(), rows("completions")


async def runs(endpoint, client, protocol, case):
    """Run a case of a client's script; the address and the key are in its environment."""
    environment = {
        "OPENAI_BASE_URL": endpoint.base_url,
        "OPENAI_API_KEY": endpoint.api_key,
        "ANTHROPIC_BASE_URL": endpoint.base_url.removesuffix("/v1"),
        "ANTHROPIC_API_KEY": endpoint.api_key,
        "MODEL": endpoint.model_name,
    }
    process = await asyncio.create_subprocess_exec(
        "node", str(Path(PLACE) / f"{client}.mjs"), protocol, case,
        env=os.environ | environment, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()


@ALL
async def test_plain(door, client, protocol):
    async with door.opened("hello") as endpoint:
        await runs(endpoint, client, protocol, "plain")


@ALL
async def test_stream(door, client, protocol):
    lines = ["hello"] if client == "ai" else ["hello", "again"]
    async with door.opened(*lines) as endpoint:
        await runs(endpoint, client, protocol, "stream")


@ALL
async def test_two_turns(door, client, protocol):
    async with door.opened("one", "two") as endpoint:
        await runs(endpoint, client, protocol, "two_turns")


@WITH_TOOLS
async def test_tools(door, client, protocol):
    async with door.opened(f"<think>\nadd\n</think>\n\n{call()}", "3") as endpoint:
        await runs(endpoint, client, protocol, "tools")


@WITH_TOOLS
async def test_parallel_tools(door, client, protocol):
    async with door.opened(call() + call(3), "3 and 5") as endpoint:
        await runs(endpoint, client, protocol, "parallel_tools")


@WITH_TOOLS
async def test_forced_tool(door, client, protocol):
    async with door.opened(call(), forced=True) as endpoint:
        await runs(endpoint, client, protocol, "forced_tool")


@WITH_TOOLS
async def test_schema(door, client, protocol):
    # the AI SDK asks models of Anthropic that it does not know for a call of a tool "json"
    by_call = (client, protocol) == ("ai", "messages")
    line = call().replace('"add"', '"json"') if by_call else ANSWER
    async with door.opened(line, forced=True) as endpoint:
        await runs(endpoint, client, protocol, "schema")
