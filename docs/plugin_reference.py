"""The reference of `art_core.rewards` and of the plugins, from signatures and docstrings.

Plugins that are not installed are read as well: nothing heavy is imported for their names.
"""

from __future__ import annotations

import importlib
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reference_page import entry

import art_core as art

PLUGINS = Path(__file__).parent.parent / "plugins"


def plugin_reference() -> str:
    """Return a section for the rewards and for each plugin: its backends, functions, classes."""
    from art_core import rewards

    lines = ["## art_core.rewards", ""]
    for name in rewards.__all__:
        if name not in art.__all__ and callable(getattr(rewards, name)):
            lines += entry(f"rewards.{name}", getattr(rewards, name))
    for file in sorted(PLUGINS.glob("*/pyproject.toml")):
        lines += _distribution(file)
    return "\n".join(lines).rstrip()


def _distribution(file: Path) -> Iterator[str]:
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    project = tomllib.loads(file.read_text())["project"]
    package = project["name"].replace("-", "_")
    extras = ", ".join(f"`{name}`" for name in project.get("optional-dependencies", {}))
    yield from (f"## {project['name']}", "", project["description"], "")
    if extras:
        yield from (f"Extras: {extras}.", "")
    for module in project.get("entry-points", {}).get("art_core", {}).values():
        yield from _backends(importlib.import_module(module))
    names = importlib.import_module(package)
    for name in getattr(names, "__all__", ()):
        yield from entry(f"{package}.{name}", getattr(names, name))


def _backends(plugin: Any) -> Iterator[str]:
    """Yield the options of each backend, which `art.backend(NAME, ...)` takes by name."""
    for spec in plugin.art_backends() if hasattr(plugin, "art_backends") else ():
        made = spec.create
        if isinstance(made, str):
            module, _, name = made.partition(":")
            made = getattr(importlib.import_module(module), name)
        title = f'art.backend("{spec.name}")'
        for line in entry(title, made, written="art.backend", members=False):
            named = line.replace("backend(\n", f'backend(\n    "{spec.name}",\n')
            yield named if named != line else line.replace("backend(*", f'backend("{spec.name}", *')
