"""`art skill`: instructions for coding agents, as a skill that they load by themselves."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from art_core import __version__
from art_core.cli.new import rendered
from art_core.hooks.commands import Output, Record
from art_core.hooks.host import Plugins

_HELP = """\
Prints how to use art-core, for a coding agent. With --into it is written as a skill, in place of an
earlier version: into the folder art-core of a directory of skills.

examples:
  art skill
  art skill --into .claude/skills
"""
_FOLDER = "art-core"


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "skill", help="instructions for coding agents, to print or install", epilog=_HELP
    )
    parser.add_argument("--into", metavar="PATH", type=Path, help="a directory of skills")
    parser.set_defaults(run=run_skill)


def run_skill(arguments: argparse.Namespace, _: Plugins) -> Iterator[Output]:
    """Yield the text, or write it and yield its path."""
    ((name, text),) = rendered("skill", {"version": __version__}).items()
    if arguments.into is None:
        yield Record({"text": text}, text.splitlines())
        return
    file = arguments.into / _FOLDER / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    yield Record({"file": file}, [str(file)])
