"""The mean reward of each scenario over the attempts of earlier steps, a baseline of advantages.

It is computed from the trajectory files of the run's steps, so a run that resumes, or goes back to
an older step, has the same means.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import orjson

from art_core.base.errors import ConfigError
from art_core.base.numbers import text_of
from art_core.data.trajectory import TrajectoryGroup

Scenario = tuple[str, str]
"""A scenario's id, and the player in it."""


@attrs.define
class ScenarioMeans:
    """Reads the rewards of each step's file once, and again when the file has changed."""

    folder: Path
    _read: dict[Path, tuple[tuple[int, int], dict[Scenario, list[float]]]] = attrs.field(
        factory=dict, init=False, repr=False
    )

    def given_to(self, groups: Sequence[TrajectoryGroup], step: int) -> list[TrajectoryGroup]:
        """Return the groups with the mean reward of their scenario in steps before `step` as their
        baseline; None where it was not tried. ConfigError for a group without a scenario id.
        """
        rewards: dict[Scenario, list[float]] = {scenario_of(g.metadata): [] for g in groups}
        for file in sorted(self.folder.glob("*.jsonl")):
            if file.stem.isdecimal() and int(file.stem) < step:
                for scenario, found in self._rewards(file).items():
                    rewards.get(scenario, []).extend(found)
        return [_with_baseline(group, rewards[scenario_of(group.metadata)]) for group in groups]

    def _rewards(self, file: Path) -> dict[Scenario, list[float]]:
        stat = file.stat()
        version = stat.st_mtime_ns, stat.st_size
        if file not in self._read or self._read[file][0] != version:
            self._read[file] = version, _rewards_in(file)
        return self._read[file][1]


def scenario_of(metadata: Mapping[str, Any]) -> Scenario:
    """Return the scenario and player of a group; ConfigError if it names none."""
    if metadata.get("scenario_id") is None:
        raise ConfigError(
            "advantage_baseline='scenario_mean' needs to know the scenario of each group",
            'Give art.TrajectoryGroup(..., metadata={"scenario_id": ...}).',
        )
    return text_of(metadata["scenario_id"]), text_of(metadata.get("player", ""))


def _with_baseline(group: TrajectoryGroup, rewards: Sequence[float]) -> TrajectoryGroup:
    given = copy.copy(group)  # with its id and account
    mean = math.fsum(rewards) / len(rewards) if rewards else None
    object.__setattr__(given, "baseline", mean)
    return given


def _rewards_in(file: Path) -> dict[Scenario, list[float]]:
    found: dict[Scenario, list[float]] = {}
    with file.open("rb") as lines:
        for line in lines:
            try:
                group = orjson.loads(line)
                scenario = scenario_of(group["metadata"])
                rewards = [float(trajectory["reward"]) for trajectory in group["trajectories"]]
            except (ConfigError, KeyError, TypeError, ValueError):
                continue  # torn, or without what a mean needs
            found.setdefault(scenario, []).extend(rewards)
    return found
