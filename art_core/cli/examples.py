"""`art examples list` and `art examples copy`: tasks that train, one file each, to change."""

from __future__ import annotations

import argparse
import shlex
import tomllib
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from art_core.base.errors import ConfigError, unknown
from art_core.cli.completion import completed
from art_core.hooks.commands import Column, Output, Record, Table
from art_core.hooks.host import Plugins

_HELP = """\
Tasks that train a small model on a CPU, one Python file each; an agent in another language is
copied with its program. The minutes are those of a measured run on two cores, the cost is that of
this time at $0.10 an hour. A copy never replaces a file.

examples:
  art examples list
  art examples copy temporal_clue
  art examples copy codenames games
"""
_FACTS = "examples.toml"
_SUFFIX = ".py"


def add(commands: Any) -> None:
    """Add both commands to the parser."""
    group = commands.add_parser("examples", help="list and copy tasks that train", epilog=_HELP)
    group.set_defaults(run=list_examples)
    actions = group.add_subparsers(metavar="ACTION")
    listing = actions.add_parser("list", help="list the examples", epilog=_HELP)
    listing.set_defaults(run=list_examples)
    copying = actions.add_parser("copy", help="copy an example", epilog=_HELP)
    name = copying.add_argument("name", metavar="NAME", help="as `art examples list` names it")
    completed(name, example_names)
    copying.add_argument("directory", metavar="DIR", type=Path, nargs="?", default=Path())
    copying.set_defaults(run=copy_example)


def list_examples(_: argparse.Namespace, __: Plugins) -> Iterator[Output]:
    """Yield the table of the examples."""
    measured, rows = _facts(), []
    for name, file in sorted(_programs().items()):
        minutes = measured["minutes"][name]
        usd = minutes / 60 * measured["usd_per_hour"]
        rows.append({"name": name, "summary": _summary(file), "minutes": minutes, "usd": usd})
    columns = [
        Column(key="name", heading="example", whole=True),
        Column(key="minutes", form="g", right=True),
        Column(key="usd", heading="cost", form="${:.3f}".format, right=True),
        Column(key="summary", heading="what it is", wrap=True),
    ]
    yield Table(name="examples", rows=rows, columns=columns)


def copy_example(arguments: argparse.Namespace, _: Plugins) -> Iterator[Output]:
    """Write an example into a directory; yield its path and how to run it."""
    name = arguments.name.removesuffix(_SUFFIX)
    programs = _programs()
    if name not in programs:
        raise ConfigError(unknown("example", name, programs))
    program = arguments.directory / f"{name}{_SUFFIX}"
    beside = _facts()["files"].get(name, ())
    targets = {program: programs[name]}
    targets |= {arguments.directory / path: _folder().joinpath(path) for path in beside}
    for target in targets:
        if target.exists() or target.is_symlink():
            raise ConfigError(f"{target} is already there", "Choose another directory.")
    for target, source in targets.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("x", encoding="utf-8") as file:
            file.write(source.read_text(encoding="utf-8"))
    after = f"python {shlex.quote(str(program))}"
    written = [*map(str, targets), "", f"next: {after}"]
    yield Record({"file": program, "files": list(targets), "next": after}, written)


def example_names(**_: Any) -> list[str]:
    """Return the names of the examples."""
    return sorted(_programs())


def _folder() -> Traversable:
    """Return the folder of the examples: in a checkout, templates/examples links to it."""
    return files("art_core.cli") / "templates" / "examples"


def _facts() -> dict[str, Any]:
    """Return the minutes of the examples, and the files that belong to them."""
    return tomllib.loads((_folder() / _FACTS).read_text(encoding="utf-8"))


def _programs() -> dict[str, Traversable]:
    found = [item for item in _folder().iterdir() if item.name.endswith(_SUFFIX)]
    return {item.name.removesuffix(_SUFFIX): item for item in found}


def _summary(file: Traversable) -> str:
    """Return the first line of a program's docstring."""
    return file.read_text(encoding="utf-8").split('"""')[1].splitlines()[0]
