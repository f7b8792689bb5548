"""Rewards for tool calls."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from art_core.data.trajectory import Trajectory


def tool_called(
    trajectory: Trajectory,
    name: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    exactly: bool = False,
) -> float:
    """Return 1.0 if the attempt called a tool, with these arguments if any are given.

    The call may have other arguments too, unless `exactly` is set. Arguments are compared as JSON
    values. Calls in additional histories count; those whose arguments are no JSON object do not.
    """
    wanted = dict(arguments or {})
    for called, given in _calls(trajectory):
        if called != name:
            continue
        if given is None:
            if not wanted and not exactly:
                return 1.0
            continue
        kept = given if exactly else {key: given[key] for key in wanted if key in given}
        if arguments is None or kept == wanted:
            return 1.0
    return 0.0


def _calls(trajectory: Trajectory) -> Iterator[tuple[str, dict[str, Any] | None]]:
    for history in trajectory.histories():
        for message in history.messages():
            for call in message.get("tool_calls") or ():
                function = call.get("function") or {}
                yield str(function.get("name")), _arguments(function.get("arguments"))


def _arguments(text: Any) -> dict[str, Any] | None:
    if isinstance(text, Mapping):
        return dict(text)
    try:
        value = json.loads(text or "{}")
    except (TypeError, ValueError):
        return None
    return value if isinstance(value, dict) else None
