"""The messages between the backend and its worker: lines of JSON, with errors as values."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from art_core import (
    ArtError,
    BackendError,
    ConfigError,
    TrainResult,
    Trajectory,
    TrajectoryGroup,
    errors,
)
from art_core.base.files import json_line

_INFINITE = "infinite"


def encoded(message: Mapping[str, Any]) -> bytes:
    """Return a message as one line."""
    return json_line(message)


def decoded(line: bytes) -> dict[str, Any]:
    """Return the message in a line."""
    message: dict[str, Any] = json.loads(line)
    return message


def group_values(groups: Iterable[TrajectoryGroup]) -> list[dict[str, Any]]:
    """Return groups as JSON values; ConfigError for a reward that is not finite, which JSON cannot
    represent.
    """
    groups = list(groups)
    for group in groups:
        if not all(map(math.isfinite, group.rewards)):
            raise ConfigError(
                f"a group has rewards that are not finite: {group.rewards}",
                "Gathering sorts such attempts out: art.gather_trajectory_groups(groups).",
            )
    return [group.to_dict() for group in groups]


def batch_values(batches: Iterable[Iterable[Trajectory]]) -> list[dict[str, Any]]:
    """Return batches of supervised fine-tuning as JSON values, without rewards: they are not read,
    and may be unknown.
    """
    values = [TrajectoryGroup(batch).to_dict() for batch in batches]
    for batch in values:
        batch["trajectories"] = [{**each, "reward": 0.0} for each in batch["trajectories"]]
    return values


def result_values(result: TrainResult) -> dict[str, Any]:
    """Return the result of a step as JSON values."""
    return {
        "step": result.step,
        "metrics": result.metrics,
        "checkpoint": None if result.checkpoint is None else str(result.checkpoint),
    }


def result_of(values: Mapping[str, Any]) -> TrainResult:
    """Return the result of such values."""
    path = values["checkpoint"]
    return TrainResult(
        step=values["step"],
        # NaN is sent as null
        metrics={k: math.nan if v is None else v for k, v in values["metrics"].items()},
        checkpoint=None if path is None else Path(path),
    )


def option_values(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of `train` as JSON values; infinity is a string."""
    return {name: _INFINITE if value == math.inf else value for name, value in options.items()}


def options_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of such values."""
    return {name: math.inf if value == _INFINITE else value for name, value in values.items()}


def error_values(error: Exception) -> dict[str, Any]:
    """Return the nearest kind of error in art-core, and its texts."""
    kinds = [kind.__name__ for kind in type(error).__mro__]
    known = next((name for name in kinds if isinstance(getattr(errors, name, None), type)), None)
    if known is None or not isinstance(error, ArtError):
        return {"kind": "BackendError", "texts": [f"{type(error).__name__}: {error}"]}
    return {"kind": known, "texts": [str(text) for text in error.args]}


def error_of(values: Mapping[str, Any]) -> ArtError:
    """Return the error of such values."""
    kind = getattr(errors, values["kind"], BackendError)
    error: ArtError = kind(*values["texts"])
    return error
