"""Trajectory groups in the protocol's JSON: written by the client, read by the server."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from art_core import ConfigError, Trajectory, TrajectoryGroup
from art_core.base.files import json_line

_TRAJECTORY: dict[str, Any] = {
    "messages_and_choices": [],
    "reward": 0.0,
    "turn_rewards": [],
    "tools": None,
    "additional_histories": [],
    "metrics": {},
    "metadata": {},
    "logs": [],
    "initial_policy_version": None,
    "final_policy_version": None,
    "start_time": None,
    "end_time": None,
}
_FAILURE = {"reason": "raised", "type": "Exception", "message": "", "traceback": ""}


def request_body(fields: Mapping[str, Any], groups: Iterable[TrajectoryGroup]) -> bytes:
    """Return a request's JSON: its fields, and the groups under `trajectory_groups`.

    Raises ConfigError for a reward that is not finite.
    """
    return json_line({**fields, "trajectory_groups": [_group_json(g) for g in groups]})


def sft_groups(batches: Iterable[Iterable[Trajectory]]) -> list[TrajectoryGroup]:
    """Return batches of supervised fine-tuning as groups, without rewards: they are not read, and
    may be unknown.
    """
    return [
        TrajectoryGroup(
            Trajectory(
                messages_and_choices=each.messages_and_choices,
                tools=each.tools,
                additional_histories=each.additional_histories,
            )
            for each in batch
        )
        for batch in batches
    ]


def _group_json(group: TrajectoryGroup) -> dict[str, Any]:
    if not all(map(math.isfinite, group.rewards)):
        raise ConfigError(
            f"a group has rewards that are not finite: {group.rewards}",
            "Gathering sorts such attempts out: art.gather_trajectory_groups(groups).",
        )
    values = group.to_dict()
    values["exceptions"] = values.pop("failures")
    return values


def groups_of(values: Any) -> list[TrajectoryGroup]:
    """Read groups from a request's `trajectory_groups`; missing fields have their defaults.

    Raises ConfigError with the path of an invalid value: `trajectory_groups[0]...`.
    """
    if not isinstance(values, list):
        raise ConfigError(f"trajectory_groups must be a list, got {type(values).__name__}")
    return [_group_of(value, f"trajectory_groups[{n}]") for n, value in enumerate(values)]


def _group_of(value: Any, where: str) -> TrajectoryGroup:
    given = _object(value, where)
    failures = given.get("exceptions") or given.get("failures") or []
    stored = {
        "trajectories": [
            _trajectory(t, f"{where}.trajectories[{n}]")
            for n, t in enumerate(_list(given.get("trajectories"), f"{where}.trajectories"))
        ],
        "failures": [
            _FAILURE | {k: v for k, v in _object(f, f"{where}.exceptions").items() if k in _FAILURE}
            for f in _list(failures, f"{where}.exceptions")
        ],
        "metadata": _object(given.get("metadata") or {}, f"{where}.metadata"),
        "metrics": _object(given.get("metrics") or {}, f"{where}.metrics"),
        "logs": _list(given.get("logs") or [], f"{where}.logs"),
        "baseline": _number(given.get("baseline"), f"{where}.baseline"),
    }
    try:
        group = TrajectoryGroup.from_dict(stored)
        for trajectory in group:
            trajectory.check_turn_rewards()
        return group
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _trajectory(value: Any, where: str) -> dict[str, Any]:
    given = _object(value, where)
    unknown = sorted(given.keys() - _TRAJECTORY.keys())
    if unknown:
        raise ConfigError(f"{where}.{unknown[0]} is not a field of a trajectory")
    filled = _TRAJECTORY | {k: v for k, v in given.items() if v is not None}
    reward = given.get("reward", 0.0)
    if _number(reward, f"{where}.reward") is None:  # NaN is written as null
        raise ConfigError(f"{where}.reward must be a finite number, got None")
    for name in ("messages_and_choices", "turn_rewards", "additional_histories", "logs"):
        _list(filled[name], f"{where}.{name}")
    _items(filled["messages_and_choices"], f"{where}.messages_and_choices")
    for n, history in enumerate(filled["additional_histories"]):
        inside = f"{where}.additional_histories[{n}]"
        items = _object(history, inside).get("messages_and_choices", [])
        _items(_list(items, f"{inside}.messages_and_choices"), f"{inside}.messages_and_choices")
    for name in ("metrics", "metadata"):
        _object(filled[name], f"{where}.{name}")
    filled["start_time"] = filled["start_time"] or datetime.now(UTC).isoformat()
    return filled


def _items(items: Sequence[Any], where: str) -> None:
    for n, item in enumerate(items):
        fields = _object(item, f"{where}[{n}]")
        if "role" not in fields and "message" not in fields:
            raise ConfigError(f"{where}[{n}] is neither a message nor a choice")


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where} must be an object, got {type(value).__name__}")
    return value


def _number(value: Any, where: str) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (number and math.isfinite(value)):
        raise ConfigError(f"{where} must be a finite number, got {value!r}")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigError(f"{where} must be a list, got {type(value).__name__}")
    return value
