"""One environment for each library that art-core is compared with, never art-core's own."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from argparse import ArgumentParser
from collections.abc import Iterable
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "art-core-rivals"


def add_options(parser: ArgumentParser) -> None:
    """Add the options for the folder of the environments."""
    told = f"the folder of the rivals' environments; default {CACHE}"
    parser.add_argument("--env", type=Path, default=CACHE, metavar="DIR", help=told)
    parser.add_argument("--install", action="store_true", help="make those that are missing")


def install(environments: Path, distributions: Iterable[str]) -> None:
    """Make the environments that are missing, with the newest release that pip finds for each."""
    for distribution in distributions:
        home = environments / distribution
        if not home.exists():
            print(f"installing {distribution} into {home}", file=sys.stderr)
            venv.create(home, with_pip=True)
            pip = [str(home / "bin" / "python"), "-m", "pip", "install", "-qq", distribution]
            subprocess.run(pip, check=True)


def python_of(distribution: str, module: str, environments: Path) -> str | None:
    """Return the interpreter of a library's own environment, else this one; None without it."""
    look = f"import importlib.util as u, sys; sys.exit(u.find_spec({module!r}) is None)"
    for python in (environments / distribution / "bin" / "python", Path(sys.executable)):
        if python.exists() and not subprocess.run([python, "-c", look], check=False).returncode:
            return str(python)
    return None
