"""What a leaderboard shows of a run: the newest and the best of its rows, under Argus's names."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import attrs

from art_core import ArtError, MetricsRow

BEST_OF = ("reward/mean", "val/reward")
_NOT_OUTCOMES = ("costs/", "data/", "loss/", "time/", "val/data/", "test/data/")
_MEGABYTES = {
    "GPU_Memory": "system/gpu_memory_mb",
    "GPU_Memory_Peak": "system/gpu_memory_peak_mb",
}


@attrs.define
class Summary:
    """What the rows so far say. A row that was seen before, by its seq, changes nothing."""

    seq: int = 0
    first_at: datetime | None = None
    last_at: datetime | None = None
    last: dict[str, float] = attrs.field(factory=dict)
    curves: dict[str, dict[int, float]] = attrs.field(
        factory=lambda: {key: {} for key in (*BEST_OF, "time/step_wall_s")}
    )

    @classmethod
    def of_log(cls, history: Path) -> Summary:
        """Read a run's log; what is torn or no row is left out."""
        summary = cls()
        if history.is_file():
            with history.open("rb") as lines:
                summary.add(row for row in map(_row, lines) if row is not None)
        return summary

    def add(self, rows: Iterable[MetricsRow]) -> None:
        """Take rows into account; a later row of a step replaces the earlier one's values."""
        for row in rows:
            if 0 < row.seq <= self.seq:
                continue
            self.seq = row.seq
            self.first_at = self.first_at or row.recorded_at
            self.last_at = row.recorded_at
            metrics = finite(row.metrics)
            self.last |= metrics
            for key, curve in self.curves.items():
                if key in metrics:
                    curve[row.step] = metrics[key]

    @property
    def train_steps(self) -> int:
        """Steps that were trained."""
        return len(self.curves["time/step_wall_s"])

    def metrics(self, config: Mapping[str, Any]) -> dict[str, float]:
        """Return `job_done.metrics`: finite floats, in seconds and megabytes where Argus expects
        them.
        """
        last = self.last
        named = {k: v for k, v in last.items() if not k.startswith(_NOT_OUTCOMES)}
        named |= {k: last[k] for k in ("costs/cum/all",) if k in last}
        named |= {name: last[key] for name, key in _MEGABYTES.items() if key in last}
        for key in BEST_OF:
            if curve := self.curves[key]:
                step = max(curve, key=lambda at: curve[at])
                named |= {f"{key}_best": curve[step], f"{key}_best_step": float(step)}
        return named | self._times() | finite(_described(config))

    def _times(self) -> dict[str, float]:
        wall = self.last.get("time/wall_clock_sec", 0.0)
        walls = self.curves["time/step_wall_s"]
        named = {"train_epochs": float(self.train_steps)}
        if wall > 0:
            named["Total_Train_Time"] = wall
            if "data/cum/num_trajectories" in self.last:
                named["Samples_Per_Second"] = self.last["data/cum/num_trajectories"] / wall
        if walls:
            named["Avg_Epoch_Time"] = math.fsum(walls.values()) / len(walls)
        return named


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """Return the values that are finite, as plain floats."""
    return {key: float(value) for key, value in values.items() if math.isfinite(value)}


def _described(config: Mapping[str, Any]) -> dict[str, float]:
    """Return what the user's config says of seed and size."""
    said = {"seed": config.get("seed"), "n_params": config.get("n_params")}
    said["Model_Params"] = said["n_params"]
    return {k: v for k, v in said.items() if isinstance(v, (int, float))}


def _row(line: bytes) -> MetricsRow | None:
    try:
        return MetricsRow.from_line(line)
    except ArtError:
        return None
