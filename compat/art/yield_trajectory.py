"""A trajectory that code deep inside a rollout hands to the code that started it."""

from __future__ import annotations

from collections.abc import Coroutine
from contextvars import ContextVar
from typing import Any

from art.trajectories import Trajectory

_yielded: ContextVar[list[Trajectory] | None] = ContextVar("yielded", default=None)


def yield_trajectory(trajectory: Trajectory) -> None:
    """Hand a trajectory to the `capture_yielded_trajectory` around this call, if there is one."""
    caught = _yielded.get()
    if caught is not None:
        caught.append(trajectory)


async def capture_yielded_trajectory(coroutine: Coroutine[Any, Any, Any]) -> Trajectory:
    """Run a coroutine and return the trajectory that it yielded last.

    RuntimeError if it yielded none.
    """
    caught: list[Trajectory] = []
    token = _yielded.set(caught)
    try:
        await coroutine
    finally:
        _yielded.reset(token)
    if not caught:
        raise RuntimeError("the coroutine yielded no trajectory; it calls art.yield_trajectory")
    return caught[-1]
