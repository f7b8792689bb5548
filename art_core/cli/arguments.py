"""Arguments of several commands: runs, directories, output files; and usage errors in one line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

from art_core.base.errors import ConfigError
from art_core.budgets.budget import Budget, budget
from art_core.cli.completion import completed, run_names


class Parser(argparse.ArgumentParser):
    """Reports a wrong argument in one line that names the command."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **options)

    def error(self, message: str) -> NoReturn:
        """Exit with status 2, the error and the command that prints the help."""
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse; reject unknown arguments here, so that the error names this command."""
        known, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return known, rest


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add `--json` to a parser and to all parsers below it that have no such option of their own.

    It sets `as_json`, before an action or after it.
    """
    for action in parser._actions:  # noqa: SLF001
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for child in action.choices.values():
                add_json(child)
    if "--json" not in parser._option_string_actions:  # noqa: SLF001
        parser.add_argument(
            "--json",
            action="store_true",
            dest="as_json",
            default=argparse.SUPPRESS,
            help="print one JSON object, numbers unrounded, for programs",
        )


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add RUN and `--dir`."""
    name = parser.add_argument(
        "name", metavar="RUN", help="a run's name, project/name or directory"
    )
    completed(name, run_names)
    add_directory(parser)


def add_directory(parser: argparse.ArgumentParser) -> None:
    """Add `--dir`."""
    parser.add_argument(
        "--dir",
        type=directory,
        metavar="PATH",
        help="the directory of the runs (default: $ART_DIR, else .art)",
    )


def add_budget(parser: argparse._ActionsContainer) -> None:
    """Add `--max-usd` and `--budget-file`, for `given_budget`."""
    parser.add_argument(
        "--max-usd", type=float, metavar="USD", help="spend at most so much (docs/budget.md)"
    )
    parser.add_argument(
        "--budget-file", type=Path, metavar="FILE", help="share --max-usd by this file"
    )


def given_budget(arguments: argparse.Namespace) -> Budget | None:
    """Return the budget of a command line; None without one."""
    if arguments.max_usd is None:
        if arguments.budget_file is not None:
            raise ConfigError("--budget-file needs --max-usd")
        return None
    return budget(usd=arguments.max_usd, file=arguments.budget_file)


def limited(arguments: argparse.Namespace) -> AbstractContextManager[Any]:
    """Return a block that holds the command's paid calls to its budget, if it has one."""
    chosen = given_budget(arguments)
    return nullcontext() if chosen is None else chosen.limiting()


def directory(text: str) -> Path:
    """Return the path of a directory that exists."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"there is no directory {text!r}")
    return Path(text)


def output_file(text: str) -> Path:
    """Return the path of a file whose directory exists and which is not a directory."""
    path = Path(text)
    if path.is_dir() or not path.name:
        raise argparse.ArgumentTypeError(f"{text!r} is a directory, not a file")
    directory(str(path.parent))
    return path
