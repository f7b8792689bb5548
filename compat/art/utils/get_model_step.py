"""The newest checkpoint on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from art.utils.output_dirs import get_model_dir


def get_step_from_dir(output_dir: str) -> int:
    """Return the highest step with a checkpoint in a run's directory; 0 without one."""
    stored = Path(output_dir, "checkpoints").glob("*/")
    return max((int(each.name) for each in stored if each.name.isdigit()), default=0)


def get_model_step(model: Any, art_path: str) -> int:
    """Return the highest step with a checkpoint of a model."""
    return get_step_from_dir(get_model_dir(model, art_path))
