"""`art engines`: inference engines of the installed backends, each in its own environment."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterator
from typing import Any

from art_core.backends import EngineCatalog, InferenceEngine
from art_core.base.errors import ConfigError, unknown
from art_core.cli.models import add_backend
from art_core.hooks.commands import Column, Output, Record, Table
from art_core.hooks.host import Plugins

_HELP = """\
An engine that is not part of a backend's own package is installed once, into an environment of its
own, so that its requirements never meet the trainer's.

examples:
  art engines
  art engines install vllm
  art engines install vllm --index URL    (without a GPU: the index with PyTorch's builds for CPUs)
  art engines remove vllm
"""

_NONE = "the installed backends have no engines to list; see `art backends`"


def add(commands: Any) -> None:
    """Add the commands to the parser."""
    group = commands.add_parser("engines", help="list, install and remove engines", epilog=_HELP)
    add_backend(group, None, "only this backend's engines")
    group.set_defaults(run=list_engines)
    actions = group.add_subparsers(metavar="ACTION")
    for name, run, about in (
        ("list", list_engines, "list engines"),
        ("install", install_engine, "install an engine, or repair one that was cut off"),
        ("remove", remove_engine, "delete an engine's environment"),
    ):
        action = actions.add_parser(name, help=about, epilog=_HELP)
        if run is not list_engines:
            action.add_argument("name", metavar="NAME", help="the engine, as `art engines` has it")
        if run is install_engine:
            action.add_argument(
                "--index", metavar="URL", help="a package index that has the wanted build of torch"
            )
        add_backend(action, argparse.SUPPRESS, "the backend whose engine it is")
        action.set_defaults(run=run)


def list_engines(arguments: argparse.Namespace, plugins: Plugins) -> Iterator[Output]:
    """Yield the table of engines: backend, name, version, environment."""
    rows = [
        {
            "backend": name,
            "engine": engine.name,
            "version": engine.version,
            "path": engine.path,
            "summary": engine.summary,
        }
        for name, catalog in _catalogs(plugins, arguments.backend, needed=False).items()
        for engine in catalog.list()
    ]
    columns = (
        Column(key="backend"),
        Column(key="engine"),
        Column(key="version", missing="not installed"),
        Column(key="path", form=str, missing=""),
        Column(key="summary", wrap=True, rank=1),
    )
    yield Table(name="engines", rows=rows, columns=columns, empty=_NONE)


def install_engine(arguments: argparse.Namespace, plugins: Plugins) -> Iterator[Output]:
    """Install an engine and yield its version and environment."""
    engine = _installed(_knowing(arguments, plugins), arguments.name, arguments.index)
    values = {"engine": engine.name, "version": engine.version, "path": engine.path}
    yield Record(values, [f"{engine.name} {engine.version} in {engine.path}"])


def remove_engine(arguments: argparse.Namespace, plugins: Plugins) -> Iterator[Output]:
    """Remove an engine and yield its former directory."""
    path = _knowing(arguments, plugins).remove(arguments.name)
    text = f"{arguments.name} was not installed" if path is None else f"removed {path}"
    yield Record({"engine": arguments.name, "removed": path}, [text])


def _installed(catalog: EngineCatalog, name: str, index: str | None) -> InferenceEngine:
    if index is None:
        return catalog.install(name)
    if "index" not in inspect.signature(catalog.install).parameters:
        raise ConfigError(f"engine {name!r} takes no package index", "Install it without --index.")
    return catalog.install(name, index)


def _knowing(arguments: argparse.Namespace, plugins: Plugins) -> EngineCatalog:
    catalogs = _catalogs(plugins, arguments.backend)
    known = {name: {engine.name for engine in c.list()} for name, c in catalogs.items()}
    having = [name for name, engines in known.items() if arguments.name in engines]
    if not having:
        raise ConfigError(unknown("engine", arguments.name, set().union(*known.values())))
    if len(having) > 1:
        raise ConfigError(
            f"{len(having)} backends have an engine {arguments.name!r}: {', '.join(having)}",
            "Choose one with --backend.",
        )
    return catalogs[having[0]]


def _catalogs(
    plugins: Plugins, backend: str | None, *, needed: bool = True
) -> dict[str, EngineCatalog]:
    specs = [plugins.backend(backend)] if backend else list(plugins.backends().values())
    catalogs = {spec.name: spec.engines() for spec in specs if spec.engines is not None}
    if not catalogs and (backend or needed):
        owner = f"backend {backend!r} has" if backend else "the installed backends have"
        raise ConfigError(f"{owner} no engines to list", "See `art backends`.")
    return catalogs
