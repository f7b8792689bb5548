"""`art plugins`, `art backends` and `art sinks`: what is installed."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterator
from typing import Any

from art_core.backends import BackendSpec, creator
from art_core.cli.table import table
from art_core.plugins.checks import options_of
from art_core.plugins.host import Plugins

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
A model's rows go to every sink that says "yes" below, unless the model or ART_SINKS names others:
TrainableModel(sinks=["console"]), ART_SINKS=console,wandb, or ART_SINKS= for none.

examples:
  art sinks
  art sync agent-001 --sink wandb    send the rows that a sink missed
"""


def add(commands: Any) -> None:
    """Add the commands to the parser."""

    def command(name: str, summary: str, epilog: str, run: Any) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = commands.add_parser(
            name,
            help=summary,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.set_defaults(run=run)
        return parser

    command("plugins", "list plugins: name, version, hooks, errors", _PLUGINS_HELP, list_plugins)
    backends = command(
        "backends", "list backends that can be chosen by name", _BACKENDS_HELP, list_backends
    )
    backends.add_argument("name", metavar="NAME", nargs="?", help="tell this backend's options")
    command("sinks", "list sinks that rows can be sent to", _SINKS_HELP, list_sinks)


def list_plugins(_: argparse.Namespace, plugins: Plugins) -> Iterator[str]:
    """Yield a line a plugin; broken ones say why they were set aside."""
    # A plugin whose hooks fail is found out by calling them.
    plugins.backends(), plugins.sinks(), plugins.losses(), plugins.taxonomy()
    rows = [
        (info.name, info.version or "-", ", ".join(info.hooks) or "-", info.error or "")
        for info in plugins.infos()
    ]
    return table(("plugin", "version", "hooks", "error"), rows)


def list_backends(arguments: argparse.Namespace, plugins: Plugins) -> Iterator[str]:
    """Yield a line a backend, or what to install; of one backend, its options."""
    if arguments.name:
        yield from _about(plugins.backend(arguments.name))
        return
    rows = [(spec.name, spec.summary) for _, spec in sorted(plugins.backends().items())]
    if not rows:
        yield "no backend is installed; try: pip install art-local"
        return
    yield from table(("backend", "summary"), rows)


def list_sinks(_: argparse.Namespace, plugins: Plugins) -> Iterator[str]:
    """Yield a line a sink."""
    rows = [
        (spec.name, "yes" if spec.default else "no", spec.summary)
        for _, spec in sorted(plugins.sinks().items())
    ]
    return table(("sink", "by default", "summary"), rows)


def _about(spec: BackendSpec) -> Iterator[str]:
    create = creator(spec)
    yield f"{spec.name}: {spec.summary}"
    yield from ("", *(inspect.getdoc(create) or "").splitlines(), "")
    rows = [
        (p.name, "(needed)" if p.default is p.empty else repr(p.default))
        for p in options_of(create)
    ]
    yield from table(("option", "default"), rows) if rows else ["It names no options."]
