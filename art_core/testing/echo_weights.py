"""The weights of a model of the echo: one number per step, kept in checkpoints."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from art_core.base.files import replace_json


@attrs.define(kw_only=True)
class EchoWeights:
    """The numbers of the served steps, and which of them are saved."""

    base: str
    folder: Path
    step: int
    saved: list[int]
    values: dict[int, float]
    """The number of each step that is served; 0 is the base model's."""

    @classmethod
    def load(cls, base: str, folder: Path) -> EchoWeights:
        """Return the weights that the checkpoints of a directory hold."""
        manifests = (json.loads(path.read_bytes()) for path in folder.glob("*/manifest.json"))
        values = {each["step"]: each.get("weights", 0.0) for each in manifests}
        saved = sorted(values)
        step = saved[-1] if saved else 0
        return cls(base=base, folder=folder, step=step, saved=saved, values={0: 0.0, **values})

    def update(self, seen: Sequence[Any]) -> None:
        """Advance the step; what was seen changes the number."""
        value = self.values[self.step]
        if seen:
            value = zlib.crc32(repr([value, *seen]).encode()) / 2**32
        self.step += 1
        self.values[self.step] = value

    def names(self, name: str) -> dict[str, int]:
        """Return the model names that are served, and the step of each."""
        steps = {f"{name}@{step}": step for step in sorted({0, *self.saved, self.step})}
        return {name: self.step, **steps, self.base: 0}

    def path(self, step: int) -> Path:
        """Return the directory of a checkpoint."""
        return self.folder / f"{step:04d}"

    def save(self) -> Path:
        """Write the checkpoint of the newest step."""
        path = self.path(self.step)
        manifest = {"step": self.step, "weights": self.values[self.step]}
        replace_json(path / "manifest.json", manifest)
        self.saved.append(self.step)
        return path
