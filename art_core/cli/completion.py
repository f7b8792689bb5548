"""`art completion SHELL`, and the candidates that a shell requests while the user types."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from art_core.base.errors import ConfigError
from art_core.hooks.commands import Output
from art_core.hooks.host import Plugins, installed_plugins
from art_core.log.reader import find_runs
from art_core.log.rundir import runs_path

_HELP = """\
Prints the code that makes a shell complete commands, options, names of runs, backends and sinks.
Needs: pip install 'art-core[completion]'

examples:
  eval "$(art completion bash)"                           in ~/.bashrc
  eval "$(art completion zsh)"                            in ~/.zshrc, after compinit
  art completion fish > ~/.config/fish/completions/art.fish
"""
_ASKED = "_ARGCOMPLETE"
Candidates = Callable[..., Iterable[str]]


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "completion", help="print code that makes a shell complete `art`", epilog=_HELP
    )
    parser.add_argument("shell", metavar="SHELL", choices=("bash", "zsh", "fish"))
    parser.set_defaults(run=print_code)


def print_code(arguments: argparse.Namespace, _: Plugins) -> Iterator[Output]:
    """Yield the shell's code."""
    yield from _argcomplete().shellcode(["art"], shell=arguments.shell).splitlines()


def complete(top: argparse.ArgumentParser) -> None:
    """Write the candidates and exit if a shell requests them; else return at once."""
    if _ASKED in os.environ:
        _argcomplete().autocomplete(top, exit_method=sys.exit)


def _argcomplete() -> Any:
    try:
        import argcomplete
    except ImportError as error:
        raise ConfigError(
            "completion needs argcomplete, which is not installed",
            "pip install 'art-core[completion]'",
        ) from error
    return argcomplete


def completed(action: argparse.Action, candidates: Candidates) -> None:
    """Set the candidates of an argument."""
    action.completer = candidates  # type: ignore[attr-defined]


def run_names(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """Return the names of the runs, without the project if only one run has the name."""
    runs = list(find_runs(runs_path(getattr(parsed_args, "dir", None))))
    short = [run.path.name for run in runs]
    return [*(name for name in short if short.count(name) == 1), *(run.name for run in runs)]


def backend_names(**_: Any) -> list[str]:
    """Return the names of the installed backends."""
    return sorted(installed_plugins().backends())


def sink_names(**_: Any) -> list[str]:
    """Return the names of the installed sinks."""
    return sorted(installed_plugins().sinks())


def metric_keys(**_: Any) -> list[str]:
    """Return the catalogue's keys."""
    return [key for key in installed_plugins().taxonomy().specs if not key.endswith("*")]
