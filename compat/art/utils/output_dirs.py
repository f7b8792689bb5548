"""Where a run's files are: the same places as in ART."""

from __future__ import annotations

import os
from typing import Any


def get_default_art_path() -> str:
    """Return the directory of all runs: `ART_DIR`, else `.art`."""
    return os.environ.get("ART_DIR") or ".art"


def get_models_dir(project_name: str, art_path: str | None = None) -> str:
    """Return the directory of a project's runs."""
    return f"{art_path or get_default_art_path()}/{project_name}/models"


def get_output_dir_from_model_properties(
    project: str, name: str, art_path: str | None = None
) -> str:
    """Return a run's directory, by its project and name."""
    return f"{get_models_dir(project, art_path)}/{name}"


def get_model_dir(model: Any, art_path: str | None = None) -> str:
    """Return the directory of a model's run."""
    return get_output_dir_from_model_properties(model.project, model.name, art_path)


def get_step_checkpoint_dir(model_output_dir: str, step: int) -> str:
    """Return the directory of a step's checkpoint."""
    return f"{model_output_dir}/checkpoints/{step:04d}"


def get_trajectories_dir(model_output_dir: str) -> str:
    """Return the directory of a run's trajectories."""
    return f"{model_output_dir}/trajectories"


def get_trajectories_split_dir(model_output_dir: str, split: str) -> str:
    """Return the directory of the trajectories of a split."""
    return f"{get_trajectories_dir(model_output_dir)}/{split}"
