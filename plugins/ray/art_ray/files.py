"""Values that travel through Ray's object store: groups, and files of checkpoints, as bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from art_core import ConfigError, Trajectory, TrajectoryGroup
from art_core.base.files import json_line

Files = Mapping[str, bytes]
"""The files of a directory by name."""
MANIFEST = "manifest.json"
OWN = ("schema", "step", "created_at", "files", "sha256")
"""Entries of a manifest that the writer of a checkpoint makes itself."""


def read_files(directory: Path) -> dict[str, bytes]:
    """Return the files of a directory."""
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.is_file()}


def write_files(files: Files, directory: Path) -> None:
    """Write files into a directory, which is made."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)


def without_manifest(files: Files) -> dict[str, bytes]:
    """Return the files of a checkpoint but for its manifest."""
    return {name: content for name, content in files.items() if name != MANIFEST}


def manifest_of(files: Files) -> dict[str, Any]:
    """Return the manifest of a checkpoint's files."""
    found: dict[str, Any] = json.loads(files[MANIFEST])
    return found


def about(files: Files) -> dict[str, Any]:
    """Return what a manifest states about the weights, to write the checkpoint elsewhere."""
    return {key: value for key, value in manifest_of(files).items() if key not in OWN}


def packed_groups(groups: Iterable[TrajectoryGroup]) -> list[bytes]:
    """Return groups as JSON; ConfigError for a reward that is not finite, which JSON cannot
    represent.
    """
    found = list(groups)
    for group in found:
        if not all(map(math.isfinite, group.rewards)):
            raise ConfigError(
                f"a group has rewards that are not finite: {group.rewards}",
                "Gathering sorts such attempts out: art.gather_trajectory_groups(groups).",
            )
    return [json_line(group.to_dict()) for group in found]


def packed_batches(batches: Iterable[Iterable[Trajectory]]) -> list[bytes]:
    """Return batches of supervised fine-tuning as JSON, without rewards, which may be unknown."""
    values = [TrajectoryGroup(batch).to_dict() for batch in batches]
    for batch in values:
        batch["trajectories"] = [{**each, "reward": 0.0} for each in batch["trajectories"]]
    return [json_line(batch) for batch in values]


def unpacked(line: bytes) -> TrajectoryGroup:
    """Return the group in JSON."""
    return TrajectoryGroup.from_dict(json.loads(line))
