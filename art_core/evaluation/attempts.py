"""The attempts of an evaluation on disk: each is kept as soon as it ends, and paid once."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import orjson

from art_core.base.errors import ConfigError, HistoryError, RolloutFailure
from art_core.base.files import json_line
from art_core.data.dataset import scenario_id
from art_core.data.trajectory import Trajectory, TrajectoryGroup


@attrs.frozen(kw_only=True)
class Attempt:
    """One attempt at a scenario: what came of it, and US dollars by source.

    `unpriced` counts paid calls whose price is not known. `covered` dollars were settled in the
    run's budget. `booked` states that the costs are in the log, or wait for its next row.
    """

    scenario: str
    repeat: int
    result: Trajectory | RolloutFailure
    usd: Mapping[str, float] = attrs.field(factory=dict)
    unpriced: int = 0
    covered: float = 0.0
    booked: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the attempt as plain values, without token ids."""
        group = TrajectoryGroup([self.result]).to_dict(tokens=False)
        return attrs.asdict(
            self, filter=attrs.filters.exclude("result", "booked"), recurse=False
        ) | {"group": group}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Attempt:
        """Rebuild an attempt from `to_dict`'s values."""
        values = dict(stored)
        group = TrajectoryGroup.from_dict(values.pop("group"))
        results: list[Any] = [*group.trajectories, *group.failures]
        return cls(result=results[0], **values)


@attrs.define
class AttemptFile:
    """The attempts of one evaluation. It begins with the plan, and ends with the number of the row
    that they became.
    """

    path: Path
    plan: Mapping[str, Any]
    attempts: list[Attempt] = attrs.field(factory=list)

    @classmethod
    def open(
        cls, path: Path, plan: Mapping[str, Any], is_logged: Callable[[int], bool]
    ) -> AttemptFile:
        """Return the file with the attempts of an unfinished evaluation of the same plan, or begin
        a new one in it. `is_logged` states whether the log has the row of a number. Raises
        HistoryError when the disk does not take it.
        """
        file = cls(path, dict(plan))
        entries = _entries(path)
        starts = [n for n, entry in enumerate(entries) if "plan" in entry]
        current = entries[starts[-1] :] if starts else []
        done = any(is_logged(entry["row"]) for entry in current if "row" in entry)
        if current and current[0]["plan"] == file.plan and not done:
            marks = [n for n, entry in enumerate(current) if "booked" in entry]
            file.attempts = [
                Attempt.from_dict(entry["attempt"] | {"booked": n < max(marks, default=0)})
                for n, entry in enumerate(current)
                if "attempt" in entry
            ]
        else:
            file._append({"plan": file.plan})
        return file

    def add(self, attempt: Attempt) -> None:
        """Keep an attempt: it is on disk when this returns."""
        self._append({"attempt": attempt.to_dict()})
        self.attempts.append(attempt)

    def finish(self, row: int) -> None:
        """Note the number that the evaluation's row will have, before it is logged."""
        self._append({"row": row})

    def set_booked(self) -> None:
        """Note that the costs of all attempts until now wait for the log's next row."""
        self._append({"booked": True})

    def _append(self, entry: Mapping[str, Any]) -> None:
        line = json_line(entry)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                end = file.seek(0, os.SEEK_END)
                try:
                    file.write(_after_torn(self.path, end) + line)
                    file.flush()
                    os.fsync(file.fileno())
                except OSError:
                    os.truncate(self.path, end)
                    raise
        except OSError as error:
            raise HistoryError(
                f"cannot keep an attempt in {self.path}: {error}",
                "Free space, then evaluate again: what is kept is not paid twice.",
            ) from error


def _after_torn(path: Path, end: int) -> bytes:
    """Return a line end if the file's last line has none: a killed process wrote a part of it."""
    if not end:
        return b""
    with path.open("rb") as file:
        file.seek(end - 1)
        return b"" if file.read(1) == b"\n" else b"\n"


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    found = []
    for line in filter(None, lines):
        try:
            found.append(orjson.loads(line))
        except orjson.JSONDecodeError:
            continue  # torn by a kill: the attempt runs again
    return found


def by_id(scenarios: Sequence[Any]) -> dict[str, Any]:
    """Return scenarios by id; ConfigError for none at all, and for one that is there twice."""
    found: dict[str, Any] = {}
    for scenario in scenarios:
        key = scenario_id(scenario)
        if key in found:
            raise ConfigError(f"scenario {key!r} is there twice", "Give each its own id.")
        found[key] = scenario
    if not found:
        raise ConfigError("an evaluation needs at least one scenario")
    return found


Rollout = Callable[[Any, Any], Any]
"""An async function of a model and a scenario that returns a `Trajectory`."""
