"""What a command line may say: usage errors in one line, directories that are there, files that can
be written.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """Tells a wrong argument in one line, from the command that it was given to."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2: what is wrong, and where the command is explained."""
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse, and refuse what is left over here: the parser above would blame itself."""
        known, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return known, rest


def directory(text: str) -> Path:
    """Return the path of a directory that is there."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"there is no directory {text!r}")
    return Path(text)


def output_file(text: str) -> Path:
    """Return the path of a file that can be made: its directory is there, and it is none itself."""
    path = Path(text)
    if path.is_dir() or not path.name:
        raise argparse.ArgumentTypeError(f"{text!r} is a directory, not a file")
    directory(str(path.parent))
    return path
