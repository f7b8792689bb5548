"""`art new KIND NAME`: the files of a new plugin, with tests that pass."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Iterator, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template
from typing import Any

from art_core import __version__
from art_core.base.errors import ConfigError
from art_core.hooks.commands import Output, Record
from art_core.hooks.host import Plugins

_HELP = """\
Writes a folder with a pyproject.toml, code and tests that pass, to start from. The tests of a
plugin run the contract that all plugins of its kind keep. Nothing is overwritten.

examples:
  art new sink clickhouse
  art new backend cluster --into plugins
  art new price-book acme
  art new loss gentle
  art new advantages ranks
  art new check vanishing-gradient
  art new command rate
"""
_KINDS = {
    "sink": "a sink",
    "backend": "a backend",
    "price-book": "a price book",
    "loss": "a loss",
    "advantages": "advantages",
    "check": "a rule of `art doctor`",
    "command": "a command of `art`",
}
_PREFIXES = {"price-book": "art-prices-"}
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_LONGEST_NAME = 30
_SUFFIX = ".tmpl"


def add(commands: Any) -> None:
    """Add the commands to the parser."""
    group = commands.add_parser("new", help="write a plugin to start from", epilog=_HELP)
    kinds = group.add_subparsers(metavar="KIND", required=True)
    for kind, about in _KINDS.items():
        parser = kinds.add_parser(kind, help=about, epilog=_HELP)
        parser.add_argument("name", metavar="NAME", help=f"what the {kind} is called")
        parser.add_argument(
            "--into", metavar="PATH", type=Path, default=Path(), help="where the folder is put"
        )
        # All commands, when it runs: also those that are added after this one.
        parser.set_defaults(run=write_project, kind=kind, commands=commands.choices)


def write_project(arguments: argparse.Namespace, plugins: Plugins) -> Iterator[Output]:
    """Write the files; yield their paths and the next steps."""
    kind, name = arguments.kind, arguments.name
    offers: dict[str, Collection[str]] = {
        "sink": plugins.sinks(),
        "backend": plugins.backends(),
        "loss": plugins.losses(),
        "advantages": plugins.advantages(),
        "check": plugins.checks(),
        "command": arguments.commands,
    }
    checked(kind, name, offers.get(kind, ()))
    words = words_of(kind, name)
    target = arguments.into / words["distribution"]
    if target.exists():
        raise ConfigError(f"{target} is already there", "Choose another name, or --into.")
    written = sorted(rendered(kind, words).items())
    for path, text in written:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_text(text, encoding="utf-8")
    paths = [target / path for path, _ in written]
    after = f"cd {target} && pip install --editable '.[test]' && pytest"
    yield Record({"files": paths, "next": after}, [*map(str, paths), "", f"next: {after}"])


def checked(kind: str, name: str, offers: Collection[str]) -> None:
    """Raise ConfigError for an invalid plugin name, or one that is taken."""
    if not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
        raise ConfigError(
            f"{name!r:.80} can't be the name of a {kind}",
            "Use lower-case letters, digits and single hyphens inside, beginning with a letter, "
            f"{_LONGEST_NAME} characters at most.",
        )
    if name in offers:
        raise ConfigError(
            f"a {kind} {name!r} is installed already; there are: {', '.join(sorted(offers))}",
            "Choose another name.",
        )


def words_of(kind: str, name: str) -> dict[str, str]:
    """Return the values of the words in the templates."""
    distribution = _PREFIXES.get(kind, f"art-{kind}-") + name
    return {
        "name": name,
        "distribution": distribution,
        "module": distribution.replace("-", "_"),
        "Class": "".join(part.capitalize() for part in name.split("-")),
        "version": __version__,
    }


def rendered(kind: str, words: Mapping[str, str]) -> dict[Path, str]:
    """Return the files of a new project: path inside its folder, and text."""
    found = _templates(files("art_core.cli") / "templates" / kind, Path())
    return {
        Path(*(words["module"] if part == "module" else part for part in path.parts)): Template(
            text
        ).substitute(words)
        for path, text in found
    }


def _templates(folder: Traversable, at: Path) -> Iterator[tuple[Path, str]]:
    for item in folder.iterdir():
        if item.is_dir():
            yield from _templates(item, at / item.name)
        else:
            yield at / item.name.removesuffix(_SUFFIX), item.read_text(encoding="utf-8")
