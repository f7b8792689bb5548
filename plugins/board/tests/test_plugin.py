"""The plugin: its module, which imports nothing heavy, and its command."""

from __future__ import annotations

import art_core as art
from art_board.command import COMMAND
from art_core.testing.plugin import PluginContract


class TestPlugin(PluginContract):
    module = "art_board.plugin"
    heavy = (*PluginContract.heavy, "starlette", "uvicorn", "anyio")


def test_the_plugin_offers_the_command():
    assert art.Plugins.discover().commands()["board"] == COMMAND
    assert "examples:" in COMMAND.help
