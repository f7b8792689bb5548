"""What every plugin module keeps to. Subclass `PluginContract` and say which module it is."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import Iterable
from importlib import import_module

from art_core.backends import BackendSpec
from art_core.plugins.commands import CommandSpec
from art_core.plugins.host import GROUP, Plugins
from art_core.sinks.protocol import SinkSpec


class PluginContract:
    """`module` is the one that the entry point names; `heavy` must not be loaded by importing
    it.
    """

    module: str
    heavy: Iterable[str] = (
        "matplotlib",
        "numpy",
        "openai",
        "pydantic",
        "starlette",
        "torch",
        "transformers",
        "uvicorn",
        "vllm",
        "wandb",
    )

    def test_it_is_installed_as_an_entry_point(self) -> None:
        """The core finds plugins by the entry-point group `art_core`."""
        assert self.module in {e.module for e in importlib.metadata.entry_points(group=GROUP)}

    def test_importing_it_loads_nothing_heavy(self) -> None:
        """A plugin that nobody uses costs nobody time: what is heavy is imported in `create`."""
        code = f"import sys, {self.module}; print(*sys.modules)"
        command = [sys.executable, "-c", code]
        ran = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        assert not set(self.heavy) & set(ran.stdout.split())

    def test_its_hooks_are_spelt_as_the_core_spells_them(self) -> None:
        """There is a hook, and each has a known name and known arguments."""
        (info,) = self._plugins().infos()
        assert info.hooks

    def test_its_specs_are_well_formed(self) -> None:
        """Names that can be typed into a command, and a summary that fits into a table; losses
        whose names are not taken, commands whose arguments a parser takes.
        """
        plugins = self._plugins()
        plugins.losses()
        specs: list[BackendSpec | SinkSpec | CommandSpec] = [
            *plugins.backends().values(),
            *plugins.sinks().values(),
            *plugins.commands().values(),
        ]
        for spec in specs:
            assert spec.name == spec.name.strip().lower() and " " not in spec.name
            assert spec.summary and "\n" not in spec.summary

    def test_its_metrics_join_the_catalogue(self) -> None:
        """No metric of the core, or of another plugin, is defined again in another way."""
        self._plugins().taxonomy()

    def _plugins(self) -> Plugins:
        plugins = Plugins(strict=True)
        plugins.register(import_module(self.module), "contract")
        return plugins
