"""Outcomes of an attempt as JSON, in the form of the trajectory files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from art_core.base.errors import ConfigError, RolloutFailure
from art_core.base.files import json_line
from art_core.data.outcome import Outcomes, checked
from art_core.data.store import shorten_prompts
from art_core.data.trajectory import Trajectory, TrajectoryGroup


def outcomes_of(outcome: Trajectory | RolloutFailure | Outcomes) -> Outcomes:
    """Return checked outcomes, by player; ConfigError for other values.

    A trajectory that no group can hold, such as one without a finite reward, is a failure.
    """
    named: Mapping[Any, Any] = outcome if isinstance(outcome, Mapping) else {None: outcome}
    found: Outcomes = {}
    for name, each in named.items():
        if isinstance(each, Trajectory):
            found[name] = checked(each, each.start_time)
        elif isinstance(each, RolloutFailure):
            found[name] = each
        else:
            raise ConfigError(
                f"an attempt ends with trajectories or a RolloutFailure, not {type(each).__name__}"
            )
    if not found:
        raise ConfigError("an attempt ends with trajectories or a RolloutFailure, got none")
    return found


def failures_of(outcomes: Outcomes) -> list[RolloutFailure]:
    """Return the failures if an attempt has no trajectory, else none."""
    failures = [each for each in outcomes.values() if isinstance(each, RolloutFailure)]
    return failures if len(failures) == len(outcomes) else []


def step_of(outcomes: Outcomes) -> int | None:
    """Return the oldest step whose weights made a part of an attempt; None if it is not known."""
    steps = [
        each.initial_policy_version
        for each in outcomes.values()
        if isinstance(each, Trajectory) and each.initial_policy_version is not None
    ]
    return min(steps, default=None)


def to_json(outcomes: Outcomes) -> bytes:
    """Return outcomes as one line of JSON. Values that JSON cannot hold are stored as text."""
    made = {k: v for k, v in outcomes.items() if isinstance(v, Trajectory)}
    failed = {k: v for k, v in outcomes.items() if isinstance(v, RolloutFailure)}
    stored = TrajectoryGroup(made.values(), exceptions=failed.values()).to_dict()
    for trajectory in stored["trajectories"]:
        histories = (trajectory, *trajectory["additional_histories"])
        shorten_prompts([history["messages_and_choices"] for history in histories])
    return json_line({"players": list(made), "failed": list(failed), "group": stored})


def from_json(data: bytes) -> Outcomes:
    """Return the outcomes of a line."""
    return from_dict(orjson.loads(data))


def from_dict(stored: Mapping[str, Any]) -> Outcomes:
    """Return the outcomes of JSON values; ConfigError for others."""
    try:
        group = TrajectoryGroup.from_dict(stored["group"])
        made = zip(stored["players"], group.trajectories, strict=True)
        failed = zip(stored["failed"], group.failures, strict=True)
        return {**dict(made), **dict(failed)}
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"not the outcomes of an attempt: {error!r}") from error
