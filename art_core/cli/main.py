"""The entry point of `art`: it parses the arguments, runs the command and prints the result."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from art_core import __version__
from art_core.base.errors import ArtError
from art_core.cli import (
    check,
    completion,
    costs,
    doctor,
    engines,
    environments,
    evaluation,
    examples,
    export,
    forecast,
    gateway,
    imports,
    init,
    leaderboard,
    metrics,
    models,
    new,
    plot,
    plugins,
    prices,
    reprice,
    retrain,
    rm,
    runs,
    show,
    skill,
    sync,
    train,
    worker,
)
from art_core.cli.arguments import Parser, add_json
from art_core.cli.output import print_json, print_text
from art_core.hooks.commands import CommandSpec
from art_core.hooks.host import Plugins, installed_plugins

log = logging.getLogger("art_core")

_HELP = """\
examples:
  art init demo                an agent to start from
  art train demo               train it
  art examples list            tasks that train, one file each, to copy
  art backends                 what can train and serve a model here
  art runs                     what ran, how far it came, what it cost
  art show agent-001           a run's curves and its cost tree
  art leaderboard              the runs in order of merit
  art runs --json              any command's answer as JSON, for programs
  art COMMAND --help           more about a command

environment: ART_DIR (directory of the runs), ART_BACKEND, ART_SINKS, ART_BLOCK, ART_STRICT
"""
_COMMANDS = (
    init,
    examples,
    train,
    plugins,
    metrics,
    models,
    engines,
    runs,
    show,
    doctor,
    forecast,
    leaderboard,
    check,
    environments,
    evaluation,
    retrain,
    gateway,
    worker,
    costs,
    plot,
    export,
    imports,
    sync,
    reprice,
    prices,
    rm,
    new,
    skill,
    completion,
)


def parser(host: Plugins | None = None) -> argparse.ArgumentParser:
    """Build the parser of the core's commands and those of the plugins of `host`."""
    top = Parser(
        prog="art",
        description="Train LLM agents on any backend; every step is a row with what it cost.",
        epilog=_HELP,
    )
    top.add_argument("--version", action="version", version=f"art-core {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND")
    for group in _COMMANDS:
        group.add(commands)
    for spec in host.commands().values() if host else ():
        _add_command(commands, spec)
    for command in commands.choices.values():
        add_json(command)
    return top


def _add_command(commands: Any, spec: CommandSpec) -> None:
    if spec.name in commands.choices:
        log.warning("art has a command %r of its own; a plugin's is left out", spec.name)
        return
    command = commands.add_parser(
        spec.name, help=spec.summary, description=spec.summary, epilog=spec.help
    )
    spec.create(command)
    command.set_defaults(run=spec.run)


def main(argv: Sequence[str] | None = None, host: Plugins | None = None) -> int:
    """Run `art ...` and return its exit status: 0, 1 if a check failed, or 2 with one line on
    standard error.

    `host` holds the plugins; by default the installed ones.
    """
    try:
        host = host or installed_plugins()
        top = parser(host)
        completion.complete(top)
        arguments = top.parse_args(argv)
        if not hasattr(arguments, "run"):
            top.print_help()
            return 0
        answer = arguments.run(arguments, host)
        if getattr(arguments, "as_json", False):
            return print_json(answer)
        return print_text(answer, paged=getattr(arguments, "paged", False))
    except BrokenPipeError:
        # Whoever read us has seen enough; the interpreter must not flush into the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("art: interrupted", file=sys.stderr)
        return 130
    except (ArtError, OSError) as error:
        print(f"art: {' '.join(_said(error).split())}", file=sys.stderr)
        return 2
    return 0


def _said(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)
