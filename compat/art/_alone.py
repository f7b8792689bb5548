"""The check that openpipe-art, which owns the same import name, is not installed."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

THEIRS = "openpipe-art"


def check_alone(version_of: Callable[[str], str] = version) -> None:
    """Raise ImportError if openpipe-art is installed: its files and ours have the same names."""
    try:
        found = version_of(THEIRS)
    except PackageNotFoundError:
        return
    raise ImportError(
        f"{THEIRS} {found} and art-compat are both installed, and both own the import name `art`. "
        f"Run pip uninstall {THEIRS}, then pip install --force-reinstall --no-deps art-compat; or "
        "give each an environment of its own."
    )
