"""`art models list` and `art models pull`: base models that installed backends know by name."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from art_core.backends import ModelCatalog
from art_core.base.errors import ConfigError
from art_core.cli.completion import backend_names, completed
from art_core.hooks.commands import Column, Output, Record, Table
from art_core.hooks.host import Plugins

_HELP = """\
A backend fetches a base model by itself when training starts; pull fetches it beforehand.

examples:
  art models
  art models pull HuggingFaceTB/SmolLM2-135M-Instruct --backend local
"""

_NONE = "the installed backends have no models to list; see `art backends`"


def add(commands: Any) -> None:
    """Add both commands to the parser."""
    group = commands.add_parser("models", help="list and fetch base models", epilog=_HELP)
    add_backend(group, None, "only this backend's models")
    group.set_defaults(run=list_models)
    actions = group.add_subparsers(metavar="ACTION")
    listing = actions.add_parser("list", help="list base models", epilog=_HELP)
    add_backend(listing, argparse.SUPPRESS, "only this backend's models")
    listing.set_defaults(run=list_models)
    pulling = actions.add_parser("pull", help="fetch a model", epilog=_HELP)
    pulling.add_argument("name", metavar="NAME", help="the model, as `art models list` names it")
    add_backend(pulling, argparse.SUPPRESS, "the backend that fetches it")
    pulling.set_defaults(run=pull_model)


def add_backend(parser: argparse.ArgumentParser, default: str | None, about: str) -> None:
    """Add `--backend`, which may stand before or after an action."""
    backend = parser.add_argument("--backend", metavar="NAME", default=default, help=about)
    completed(backend, backend_names)


def list_models(arguments: argparse.Namespace, plugins: Plugins) -> Iterator[Output]:
    """Yield the table of models: backend, name, path."""
    rows = [
        {"backend": name, "model": model.name, "path": model.path, "summary": model.summary}
        for name, catalog in _catalogs(plugins, arguments.backend, needed=False).items()
        for model in catalog.list()
    ]
    columns = (
        Column(key="backend"),
        Column(key="model"),
        Column(key="path", form=str, missing="not here"),
        Column(key="summary", wrap=True, rank=1),
    )
    yield Table(name="models", rows=rows, columns=columns, empty=_NONE)


def pull_model(arguments: argparse.Namespace, plugins: Plugins) -> Iterator[Output]:
    """Fetch a model and yield its directory."""
    catalogs = _catalogs(plugins, arguments.backend)
    knowing = [c for c in catalogs.values() if arguments.name in {m.name for m in c.list()}]
    chosen = knowing or list(catalogs.values())
    if len(chosen) > 1:
        raise ConfigError(
            f"{len(chosen)} backends could fetch {arguments.name!r}: {', '.join(catalogs)}",
            "Choose one with --backend.",
        )
    path = chosen[0].pull(arguments.name)
    yield Record({"model": arguments.name, "path": path}, [str(path)])


def _catalogs(
    plugins: Plugins, backend: str | None, *, needed: bool = True
) -> dict[str, ModelCatalog]:
    specs = [plugins.backend(backend)] if backend else list(plugins.backends().values())
    catalogs = {spec.name: spec.models() for spec in specs if spec.models is not None}
    if not catalogs and (backend or needed):
        owner = f"backend {backend!r} has" if backend else "the installed backends have"
        raise ConfigError(f"{owner} no models to list", "See `art backends`.")
    return catalogs
