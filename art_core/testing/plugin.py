"""The contract of plugin modules. Subclass `PluginContract` and give the module's name."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import attrs

from art_core.backends import BackendSpec
from art_core.checks.finding import CheckSpec
from art_core.hooks.commands import CommandSpec
from art_core.hooks.environments import EnvironmentSpec
from art_core.hooks.host import GROUP, Plugins
from art_core.metrics.taxonomy import MetricSpec
from art_core.rl.advantages import AdvantageSpec
from art_core.rl.losses import LossSpec
from art_core.sinks.protocol import SinkSpec
from art_core.testing.statements import Contract, Setting

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_MAX_SUMMARY = 120
_TYPES = {
    "art_advantages": AdvantageSpec,
    "art_backends": BackendSpec,
    "art_checks": CheckSpec,
    "art_commands": CommandSpec,
    "art_environments": EnvironmentSpec,
    "art_losses": LossSpec,
    "art_metrics": MetricSpec,
    "art_sinks": SinkSpec,
}
_IMPORT = """
import json, logging, os, sys, threading
import art_core
from art_core.hooks.host import Plugins
before, level = dict(os.environ), (logging.root.level, len(logging.root.handlers))
module = __import__(sys.argv[1], fromlist=["*"])
seen = {
    "modules": list(sys.modules),
    "threads": [t.name for t in threading.enumerate() if t is not threading.main_thread()],
    "variables": sorted(k for k, v in {**before, **os.environ}.items()
                        if before.get(k) != os.environ.get(k) or k not in before),
    "logging": (logging.root.level, len(logging.root.handlers)) != level,
    "files": os.listdir("."),
}
plugins = Plugins()
plugins.register(module, "contract")
for offers in (plugins.backends, plugins.sinks, plugins.commands, plugins.losses,
               plugins.advantages, plugins.checks, plugins.environments, plugins.taxonomy):
    try:
        offers()
    except Exception:
        pass  # another test shows the error
seen["modules_after_hooks"] = list(sys.modules)
with open(sys.argv[2], "w") as file:
    json.dump(seen, file)
"""


@attrs.frozen
class Imported:
    """The effects of importing a module in a new process, and the text that it printed."""

    effects: dict[str, Any]
    printed: str


class PluginContract(Contract):
    """The tests of a plugin module."""

    settings: ClassVar[tuple[Setting, ...]] = (
        Setting("module", "the module that the entry point names"),
        Setting("heavy", "modules that must not be loaded by importing the plugin"),
    )
    module: str = ""
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
        """Every program that uses art-core imports all plugins: heavy modules are imported in
        `create`.
        """
        assert set(self.heavy) & set(imported(self.module).effects["modules"]) == set()

    def test_asking_for_its_specs_loads_nothing_heavy(self) -> None:
        """`art plugins` and `art backends` call the hooks that offer something."""
        assert set(self.heavy) & set(imported(self.module).effects["modules_after_hooks"]) == set()

    def test_importing_it_prints_nothing(self) -> None:
        """Standard output belongs to the user's program."""
        assert imported(self.module).printed == ""

    def test_importing_it_writes_no_file(self) -> None:
        """Nothing appears in the working directory."""
        assert imported(self.module).effects["files"] == []

    def test_importing_it_starts_no_thread(self) -> None:
        """Threads begin when a sink is opened or a backend is made."""
        assert imported(self.module).effects["threads"] == []

    def test_importing_it_changes_no_setting_of_the_process(self) -> None:
        """Environment variables, and the handlers and level of the root logger."""
        effects = imported(self.module).effects
        assert effects["variables"] == []
        assert not effects["logging"]

    def test_its_hooks_are_spelt_as_the_core_spells_them(self) -> None:
        """There is a hook, and each has a known name and known arguments."""
        (info,) = self._plugins().infos()
        assert info.hooks

    def test_its_hooks_offer_specs_of_the_right_type(self) -> None:
        """`art_backends` offers BackendSpecs, `art_sinks` SinkSpecs, and so on."""
        for hook, kind in _TYPES.items():
            for spec in self._offered(hook):
                assert isinstance(spec, kind), f"{hook} offers {spec!r:.80}, which is no {kind}"

    def test_two_specs_do_not_share_a_name(self) -> None:
        """A name stands for one backend, sink, command, environment or loss."""
        for hook in ("art_backends", "art_commands", "art_environments", "art_losses", "art_sinks"):
            names = [spec.name for spec in self._offered(hook)]
            assert len(names) == len(set(names)), f"{hook} offers a name twice: {names}"

    def test_its_names_can_be_typed_into_a_command(self) -> None:
        """Lower-case letters, digits, hyphens, dots, underscores; of environments also `/`."""
        for spec in self._named():
            parts = spec.name.split("/") if isinstance(spec, EnvironmentSpec) else [spec.name]
            assert all(map(_NAME.fullmatch, parts)), f"{spec.name!r} can't be typed"

    def test_its_summaries_fit_into_a_table(self) -> None:
        """One line of 1 to 120 characters."""
        for spec in self._named():
            assert 0 < len(spec.summary) <= _MAX_SUMMARY, spec.name
            assert "\n" not in spec.summary

    def test_what_its_specs_name_can_be_imported(self) -> None:
        """`create="module:name"` and `target="module:name"` name a module that is installed."""
        plugins = self._plugins()
        named = [
            *(spec.create for spec in plugins.backends().values()),
            *(spec.target for spec in plugins.environments().values()),
        ]
        for path in named:
            if isinstance(path, str):
                module = path.partition(":")[0]
                assert importlib.util.find_spec(module), f"there is no module {module}"

    def test_its_losses_and_commands_can_be_taken(self) -> None:
        """No loss or advantages have the name of a preset, and a parser takes the arguments of each
        command.
        """
        plugins = self._plugins()
        plugins.losses()
        plugins.advantages()
        plugins.commands()

    def test_its_metrics_join_the_catalogue(self) -> None:
        """No metric of the core, or of another plugin, is defined again in another way."""
        self._plugins().taxonomy()

    def _plugins(self) -> Plugins:
        plugins = Plugins(strict=True)
        plugins.register(import_module(self.module), "contract")
        return plugins

    def _offered(self, hook: str) -> list[Any]:
        offer = getattr(import_module(self.module), hook, None)
        if offer is None or getattr(offer, "art_core_impl", {}).get("wrapper"):
            return []
        return list(offer() or ())

    def _named(self) -> list[BackendSpec | SinkSpec | CommandSpec | EnvironmentSpec]:
        plugins = self._plugins()
        return [
            *plugins.backends().values(),
            *plugins.sinks().values(),
            *plugins.commands().values(),
            *plugins.environments().values(),
        ]


@functools.cache
def imported(module: str) -> Imported:
    """Import a plugin module in a new process, and ask it for its specs."""
    with tempfile.TemporaryDirectory() as place:
        empty, result = Path(place, "empty"), Path(place, "seen.json")
        empty.mkdir()
        ran = subprocess.run(
            [sys.executable, "-c", _IMPORT, module, str(result)],
            cwd=empty,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ran.returncode == 0, f"importing {module} failed: {ran.stderr}"
        return Imported(json.loads(result.read_text()), ran.stdout)
