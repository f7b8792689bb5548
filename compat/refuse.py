"""Refuse to build art-compat for an environment with openpipe-art: both own the name `art`.

A wheel runs no code when it is installed; for wheels, `import art` refuses.
"""

from __future__ import annotations

import sysconfig
from importlib.metadata import distributions
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class RefuseBesideArt(BuildHookInterface):  # type: ignore[type-arg]
    """Stop a build that pip runs for an environment with openpipe-art."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Raise RuntimeError if openpipe-art is installed there."""
        # pip hides the environment's packages from the build, and keeps its paths
        paths = [sysconfig.get_paths()[name] for name in ("purelib", "platlib")]
        if any(found.name.lower() == "openpipe-art" for found in distributions(path=paths)):
            raise RuntimeError(
                "openpipe-art is installed here, and owns the import name `art` as art-compat "
                "does. Run pip uninstall openpipe-art first, or use another environment."
            )
