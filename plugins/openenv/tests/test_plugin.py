"""The plugin: its module, and the servers of the environment variable."""

from art_core.testing.plugin import PluginContract
from art_openenv import plugin


class TestPlugin(PluginContract):
    module = "art_openenv.plugin"
    heavy = (*PluginContract.heavy, "openenv", "httpx")


def test_named_servers_are_environments(monkeypatch):
    monkeypatch.setenv("OPENENV_SERVERS", "echo=http://127.0.0.1:8000, line=http://127.0.0.1:8001")
    echo, line = plugin.art_environments()
    assert (echo.name, line.name) == ("openenv/echo", "openenv/line")
    assert echo.load()().url == "http://127.0.0.1:8000"
    monkeypatch.delenv("OPENENV_SERVERS")
    assert plugin.art_environments() == []
