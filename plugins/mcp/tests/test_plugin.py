"""The plugin: its module, and the servers of `.mcp.json`."""

import json

import pytest

import art_core as art
from art_core.testing.plugin import PluginContract
from art_mcp import McpServer, plugin


class TestPlugin(PluginContract):
    module = "art_mcp.plugin"
    heavy = (*PluginContract.heavy, "mcp", "anyio", "httpx2")


@pytest.fixture
def configured(tmp_path, monkeypatch):
    """Write `.mcp.json` into the current directory."""
    monkeypatch.chdir(tmp_path)

    def write(text):
        (tmp_path / ".mcp.json").write_text(text if isinstance(text, str) else json.dumps(text))

    return write


def test_each_server_of_the_file_is_an_environment(configured):
    local = {"command": "python", "args": ["server.py"], "env": {"A": "b"}}
    configured({"mcpServers": {"shop": local, "far": {"url": "http://127.0.0.1:8000/mcp"}}})
    shop, far = plugin.art_environments()
    assert (shop.name, far.name) == ("mcp/shop", "mcp/far")
    expected = McpServer(name="shop", command=["python", "server.py"], env={"A": "b"})
    assert shop.load()().server == expected
    assert far.load()().server.url == "http://127.0.0.1:8000/mcp"


def test_without_the_file_there_is_none(configured):
    assert plugin.art_environments() == []


@pytest.mark.parametrize("text", ["{", "[]", '{"mcpServers": [1]}'])
def test_a_file_that_can_not_be_read_is_an_error(configured, text):
    configured(text)
    with pytest.raises(art.ConfigError, match="can't be read"):
        plugin.art_environments()


@pytest.mark.parametrize("entry", [{}, {"command": 3, "args": 4}, "python"])
def test_an_entry_that_is_no_server_is_named(configured, entry):
    configured({"mcpServers": {"odd": entry, "shop": {"command": "python"}}})
    odd, _ = plugin.art_environments()
    with pytest.raises(art.ConfigError, match="the MCP server 'odd' can't be read"):
        odd.load()()
