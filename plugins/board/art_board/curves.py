"""Curves as the page draws them: few enough points to draw, with their place on every axis."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Any

from art_core import Timeline
from art_core.reports.follow import Follower

AXES = {
    "wall": ("time/wall_clock_sec",),
    "tokens": ("data/cum/actor_tokens", "data/cum/trainer_tokens"),
    "usd": ("costs/cum/all",),
}
"""The metrics of each axis beside the step; the first that a run has counts."""
AXIS_KEYS = tuple(key for keys in AXES.values() for key in keys)
POINTS = 1000
_MAX_POINTS = 20_000
Points = tuple[Sequence[int], Sequence[float]]


def curves_of(
    follower: Follower,
    keys: Sequence[str],
    *,
    points: int = POINTS,
    first: float = float("-inf"),
    last: float = float("inf"),
) -> dict[str, Any]:
    """Return the curves of metrics between two steps, each of at most `points` points.

    Each has `step`, `y` and the axes `wall` (seconds), `tokens` and `usd`, lists of equal length;
    an axis is None before its first value. `total` is the number of points before decimation.
    """
    line = follower.line
    axes = {name: _axis(line, name) for name in AXES}
    points = max(2, min(points, _MAX_POINTS))
    found = {key: _curve(line.points(key), axes, points, first, last) for key in keys}
    spans = [
        {"attempt": span.attempt, "last": span.last} | _places([span.first], axes, single=True)
        for span in follower.spans
    ]
    return {
        "curves": {key: curve for key, curve in found.items() if curve["step"]},
        "attempts": spans,
        "rows": line.rows,
    }


def decimated(values: Sequence[float], points: int) -> list[int]:
    """Return the indices of at most `points` values: the lowest and the highest of each bucket of
    neighbours, the first and the last.
    """
    count = len(values)
    if count <= points:
        return list(range(count))
    chosen = {0, count - 1}
    buckets = max(1, (points - 2) // 2)
    for n in range(buckets):
        start = n * count // buckets
        part = list(values[start : (n + 1) * count // buckets])
        chosen.add(start + part.index(min(part)))
        chosen.add(start + part.index(max(part)))
    return sorted(chosen)


def _curve(
    whole: Points, axes: dict[str, Points], points: int, first: float, last: float
) -> dict[str, Any]:
    steps, values = whole
    start, end = bisect_left(steps, first), bisect_right(steps, last)
    steps, values = steps[start:end], values[start:end]
    chosen = decimated(values, points)
    shown = [steps[n] for n in chosen]
    ys = [values[n] for n in chosen]
    return {"y": ys, "total": len(values)} | _places(shown, axes)


def _places(steps: list[int], axes: dict[str, Points], *, single: bool = False) -> dict[str, Any]:
    """Return steps with their places on each axis: the newest value at a step or before it."""
    found: dict[str, list[Any]] = {"step": list(steps)}
    for name, (known, values) in axes.items():
        places = [bisect_right(known, step) - 1 for step in steps]
        found[name] = [values[at] if at >= 0 else None for at in places]
    return {name: values[0] for name, values in found.items()} if single else found


def _axis(line: Timeline, name: str) -> Points:
    for key in AXES[name]:
        steps, values = line.points(key)
        if steps:
            return steps, values
    times = line.times() if name == "wall" else {}
    if not times:
        return [], array("d")
    known = sorted(times)
    start = min(times.values())
    return known, array("d", [(times[step] - start).total_seconds() for step in known])
