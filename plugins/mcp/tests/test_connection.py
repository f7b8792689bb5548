"""Connections to MCP servers: what their tools give, and what goes wrong with a server."""

import attrs
import pytest

import art_core as art
from art_mcp import McpServer
from art_mcp.connection import McpConnection

TIMEOUT = 20.0


async def looked_up(server, fruit="apple"):
    connection = await McpConnection.open(server)
    try:
        return await connection.tools[0].call({"fruit": fruit})
    finally:
        await connection.close()


async def test_the_tools_of_a_server_are_listed_page_by_page_under_names_of_openai(small):
    connection = await McpConnection.open(small())
    await connection.close()
    await connection.close()
    first, second = connection.tools
    assert [first.name, second.name] == ["shop_look_up", "shop_look_up_2"]
    assert first.description == "Return the price of a fruit."
    assert first.schema["function"]["parameters"]["required"] == ["fruit"]


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("", "3"),
        ("blocks", "[image: image/png]\ninside"),
        ("structured", '{"price": 3}'),
        ("refuses", "error: a fruit is needed"),
    ],
)
async def test_the_result_of_a_call_is_text(small, fault, text):
    assert await looked_up(small(fault)) == text


async def test_what_a_tool_calls_an_error_is_told_to_the_model(small):
    assert await looked_up(small(), fruit=1) == "error: it needs a fruit"


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("dies", r"ended or failed \(MCPError: .*no more memory"),
        ("fails", r"ended or failed \(MCPError: the shop is closed"),
        ("exits", "could not be used .*the key is missing"),
        ("odd", "gave no valid answer to shop.look_up"),
        ("chatty", "writes other text than MCP messages to its standard output: 'Loading ...'"),
        ("bytes", "writes other text than MCP messages to its standard output: .* loading'"),
        ("prints", "writes other text than MCP messages to its standard output: 'looking up'"),
    ],
)
async def test_a_server_that_fails_is_an_infrastructure_failure(small, fault, problem):
    with pytest.raises(art.InfrastructureError, match=problem) as caught:
        await looked_up(small(fault, timeout=TIMEOUT))
    assert art.RolloutFailure.of(caught.value).reason == "infrastructure"


async def test_a_call_without_an_answer_is_given_up_after_the_timeout(small):
    connection = await McpConnection.open(small("hangs"))
    connection.server = attrs.evolve(connection.server, timeout=0.2)
    problem = r"gave no answer to shop.look_up within 0.2 s"
    with pytest.raises(art.InfrastructureError, match=problem):
        await connection.tools[0].call({"fruit": "apple"})
    await connection.close()


async def test_a_server_that_does_not_start_is_given_up_after_the_timeout(small):
    with pytest.raises(art.InfrastructureError, match="did not start within 0.2 s"):
        await McpConnection.open(small("silent", timeout=0.2))


async def test_a_command_that_does_not_exist_is_named():
    with pytest.raises(art.InfrastructureError, match="'no-such-server --fast' could not be used"):
        await McpConnection.open(McpServer(command="no-such-server --fast"))


async def test_an_address_where_nothing_listens_is_named():
    server = McpServer(url="http://127.0.0.1:9/mcp", timeout=TIMEOUT)
    with pytest.raises(art.InfrastructureError, match="'http://127.0.0.1:9/mcp' could not be used"):
        await McpConnection.open(server)


@pytest.mark.parametrize("given", [{}, {"command": ["a"], "url": "http://b"}])
def test_a_server_has_a_command_or_an_address(given):
    with pytest.raises(art.ConfigError, match="has a command or an address"):
        McpServer(**given)


def test_a_timeout_is_above_zero():
    with pytest.raises(art.ConfigError, match="must be above 0, got 0"):
        McpServer(command="a", timeout=0)


def test_a_long_command_is_shortened_in_messages():
    assert len(McpServer(command=["python", "-c", "x" * 500]).title) == 100
