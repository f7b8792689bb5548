"""`art plugins`, `art backends` and `art sinks`: lists of installed plugins."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from art_core.backends import BackendSpec
from art_core.cli.completion import backend_names, completed
from art_core.hooks.commands import Column, Output, Record, Table
from art_core.hooks.host import Plugins
from art_core.model.backend import creator, options_of

_PLUGINS_HELP = """\
A plugin is an installed distribution with an entry point in the group `art_core`.
ART_BLOCK=a,b leaves plugins out before they are imported; ART_STRICT=1 raises what is broken.

examples:
  art plugins
  ART_BLOCK=wandb art plugins
"""
_BACKENDS_HELP = """\
Any of these names goes into art.backend(NAME), TrainableModel(backend=NAME) and ART_BACKEND.

examples:
  art backends
  art backends local           the options of art.backend("local", ...)
"""
_SINKS_HELP = """\
A model's rows go to every sink with "yes" in its row, unless the model or ART_SINKS names others:
TrainableModel(sinks=["console"]), ART_SINKS=console,wandb, or ART_SINKS= for none.

examples:
  art sinks
  art sync agent-001 --sink wandb    send the rows that a sink missed
"""


def add(commands: Any) -> None:
    """Add the commands to the parser."""

    def command(name: str, summary: str, epilog: str, run: Any) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, epilog=epilog)
        parser.set_defaults(run=run)
        return parser

    command("plugins", "list plugins: name, version, hooks, errors", _PLUGINS_HELP, list_plugins)
    backends = command(
        "backends", "list backends that can be chosen by name", _BACKENDS_HELP, list_backends
    )
    name = backends.add_argument(
        "name", metavar="NAME", nargs="?", help="show this backend's options"
    )
    completed(name, backend_names)
    command("sinks", "list sinks that rows can be sent to", _SINKS_HELP, list_sinks)


def list_plugins(_: argparse.Namespace, plugins: Plugins) -> Iterator[Output]:
    """Yield the table of plugins; a broken one is shown with its error."""
    # A plugin whose hooks fail is found out by calling them.
    plugins.backends(), plugins.sinks(), plugins.losses(), plugins.advantages()
    plugins.taxonomy()
    columns = (
        Column(key="name", heading="plugin"),
        Column(key="version"),
        Column(key="hooks", form=lambda hooks: ", ".join(hooks) or "-", wrap=True),
        Column(key="error", missing="", wrap=True),
    )
    rows = [
        {"name": info.name, "version": info.version or None, "hooks": info.hooks}
        | {"error": info.error or None}
        for info in plugins.infos()
    ]
    yield Table(name="plugins", rows=rows, columns=columns, empty="no plugin is installed")


def list_backends(arguments: argparse.Namespace, plugins: Plugins) -> Iterator[Output]:
    """Yield the table of backends, the packages to install, or the options of one backend."""
    if arguments.name:
        yield from _about(plugins.backend(arguments.name))
        return
    yield Table(
        name="backends",
        rows=[
            {"name": spec.name, "summary": spec.summary}
            for _, spec in sorted(plugins.backends().items())
        ],
        columns=(Column(key="name", heading="backend"), Column(key="summary", wrap=True)),
        empty="no backend is installed; try: pip install art-local",
    )


def list_sinks(_: argparse.Namespace, plugins: Plugins) -> Iterator[Output]:
    """Yield the table of sinks."""
    columns = (
        Column(key="name", heading="sink"),
        Column(key="default", heading="by default", form=lambda yes: "yes" if yes else "no"),
        Column(key="summary", wrap=True),
    )
    rows = [
        {"name": spec.name, "default": spec.default, "summary": spec.summary}
        for _, spec in sorted(plugins.sinks().items())
    ]
    yield Table(name="sinks", rows=rows, columns=columns, empty="no sink is installed")


def _about(spec: BackendSpec) -> Iterator[Output]:
    create = creator(spec)
    about = inspect.getdoc(create) or ""
    yield Record(
        {"name": spec.name, "summary": spec.summary, "about": about},
        [f"{spec.name}: {spec.summary}", "", *about.splitlines(), ""],
    )
    columns = (
        Column(key="name", heading="option"),
        Column(key="", heading="default", form=_default),
    )
    yield Table(
        name="options",
        rows=[
            {"name": p.name, "required": p.default is p.empty}
            | {"default": None if p.default is p.empty else p.default}
            for p in options_of(create)
        ],
        columns=columns,
        empty="It names no options.",
    )


def _default(option: Mapping[str, Any]) -> str:
    return "(needed)" if option["required"] else repr(option["default"])
