"""Argus's stop button, as a flag in the run's directory that a trainer reads between steps."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class HasRunDir(Protocol):
    """A model, or what the core tells a sink about its run."""

    @property
    def run_dir(self) -> Path:
        """The run's directory."""


def stop_requested(model: HasRunDir) -> bool:
    """Tell whether somebody pressed Argus's stop button since the model's run was opened."""
    return flag_of(model).exists()


def flag_of(model: HasRunDir) -> Path:
    """Return the file that is there once a stop was requested."""
    return model.run_dir / "sinks" / "argus.stop"
