"""The results of a run on the leaderboard: the newest value of each key, the best of outcomes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

import attrs

from art_core import Change, CurrentLine, LoggedRun, MetricsRow, RunInfo

Numbers = dict[str, int | float]
BEST_OF = ("reward/mean", "val/reward")
_MEGABYTES = {
    "GPU_Memory": "system/gpu_memory_mb",
    "GPU_Memory_Peak": "system/gpu_memory_peak_mb",
}


@attrs.define
class Summary:
    """Collects the values of the run's current line. A row with the seq of an earlier one is
    skipped.
    """

    run: RunInfo
    seq: int = 0
    first_at: datetime | None = None
    last_at: datetime | None = None
    newest: dict[str, tuple[int, float]] = attrs.field(factory=dict)
    curves: dict[str, dict[int, float]] = attrs.field(
        factory=lambda: {key: {} for key in (*BEST_OF, "time/step_wall_s")}
    )
    _line: CurrentLine = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._line = CurrentLine(self.run)

    @classmethod
    def of_log(cls, run: RunInfo) -> Summary:
        """Read a run's log; torn lines, and lines that are not rows, are left out."""
        summary, logged = cls(run), LoggedRun(run.run_dir, run.taxonomy)
        if logged.history.is_file():
            summary.add(logged.rows())
        return summary

    def add(self, rows: Iterable[MetricsRow]) -> None:
        """Add rows."""
        for row in rows:
            if 0 < row.seq <= self.seq:
                continue
            self.seq = row.seq
            self.first_at = self.first_at or row.recorded_at
            self.last_at = row.recorded_at
            self._take(self._line.change(row))

    def _take(self, change: Change) -> None:
        changed: Mapping[int, Mapping[str, float]] = change.values
        if change.line is not None:
            changed = change.line.values()
            self.newest.clear()
            for curve in self.curves.values():
                curve.clear()
        for step, values in changed.items():
            for key, value in finite(values).items():
                if step >= self.newest.get(key, (step, value))[0]:
                    self.newest[key] = step, value
                if key in self.curves:
                    self.curves[key][step] = value

    @property
    def last(self) -> dict[str, float]:
        """The value of each key at the furthest step that has one."""
        return {key: value for key, (_, value) in self.newest.items()}

    @property
    def train_steps(self) -> int:
        """The number of trained steps of the current line."""
        return len(self._line.trained)

    def metrics(self, config: Mapping[str, Any]) -> Numbers:
        """Return `job_done.metrics`: the last value of every key, the best of the outcomes, and
        Argus's own names, in seconds and megabytes. All are finite; counts are ints.
        """
        last = self.last
        named = numbers(last, self.run.taxonomy.is_count)
        named |= {name: last[key] for name, key in _MEGABYTES.items() if key in last}
        for key in BEST_OF:
            if curve := self.curves[key]:
                step = max(curve, key=lambda at: (curve[at], -at))
                named |= {f"{key}_best": curve[step], f"{key}_best_step": step}
        return named | self._times() | _described(config)

    def _times(self) -> Numbers:
        last = self.last
        wall = last.get("time/wall_clock_sec", 0.0)
        walls = self.curves["time/step_wall_s"]
        named: Numbers = {"train_epochs": self.train_steps}
        if wall > 0:
            named["Total_Train_Time"] = wall
            if "data/cum/num_trajectories" in last:
                named["Samples_Per_Second"] = last["data/cum/num_trajectories"] / wall
        if walls:
            named["Avg_Epoch_Time"] = math.fsum(walls.values()) / len(walls)
        return named


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """Return the values that are finite, as plain floats."""
    return {key: float(value) for key, value in values.items() if math.isfinite(value)}


def numbers(values: Mapping[str, float], is_count: Callable[[str], bool]) -> Numbers:
    """Return finite values, those of counts as ints: Argus reads some only if they are whole."""
    plain = finite(values)
    return {k: int(v) if v.is_integer() and is_count(k) else v for k, v in plain.items()}


def _described(config: Mapping[str, Any]) -> Numbers:
    """Return seed and size of the model as the user's config has them; ints stay ints."""
    given = {"seed": config.get("seed"), "n_params": config.get("n_params")}
    given["Model_Params"] = given["n_params"]
    return {
        k: v
        for k, v in given.items()
        if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)
    }
