"""One reward of several parts."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping
from typing import Any

from art_core.base.errors import ConfigError, RewardError
from art_core.base.numbers import number_or_none
from art_core.data.trajectory import Trajectory


async def reward(
    trajectory: Trajectory,
    parts: Mapping[str, Any],
    *,
    weights: Mapping[str, float] | None = None,
    timeout: float | None = None,
) -> float:
    """Set and return the trajectory's reward: the sum of its parts, each times its weight.

    A part is a number, a bool, an awaitable, or a function of the trajectory that returns one of
    these; functions that are not coroutines run in a thread, and all parts at the same time.
    `weights` are 1 where none is given. Each part, unweighted, becomes a metric of the trajectory
    and so `reward/<part>` of the row. The weights of several parts are kept in the trajectory's
    metadata, so that the row has the spread of each, `reward/part_std_dev/<part>`.

    Raises RewardError for a part that raises, takes longer than `timeout` seconds, or is no finite
    number: inside a rollout, the attempt becomes a failure of its group, and is not worth 0.
    Raises ConfigError for a weight without a part, or one that is not a number.
    """
    factors = {name: number_or_none((weights or {}).get(name, 1.0)) for name in parts}
    for name in {*(weights or {})} - parts.keys():
        raise ConfigError(f"a weight is given for {name!r}, which is not a part of the reward")
    for name, factor in factors.items():
        if factor is None:
            raise ConfigError(f"the weight of {name!r} must be a finite number")
    values = await asyncio.gather(*(_value(n, p, trajectory, timeout) for n, p in parts.items()))
    trajectory.metrics.update(zip(parts, values, strict=True))
    if len(parts) > 1:
        trajectory.metadata["reward_weights"] = factors
    trajectory.reward = sum(
        value * (factors[name] or 0.0) for name, value in zip(parts, values, strict=True)
    )
    return trajectory.reward


async def _value(name: str, part: Any, trajectory: Trajectory, timeout: float | None) -> float:
    try:
        async with asyncio.timeout(timeout) as limit:
            value = await _computed(part, trajectory)
    except Exception as error:
        if limit.expired():
            raise RewardError(f"the reward {name!r} took longer than {timeout} s") from error
        raise RewardError(
            f"the reward {name!r} failed ({type(error).__name__}: {error})"
        ) from error
    plain = value.item() if getattr(value, "ndim", None) == 0 else value  # of numpy or torch
    number = float(plain) if isinstance(plain, bool) else number_or_none(plain)
    if number is None:
        raise RewardError(
            f"the reward {name!r} gave {value!r:.80}, which is not a finite number",
            "Return a float.",
        )
    return number


async def _computed(part: Any, trajectory: Trajectory) -> Any:
    if callable(part) and not inspect.isawaitable(part):
        if inspect.iscoroutinefunction(part):
            part = part(trajectory)
        else:
            part = await asyncio.to_thread(part, trajectory)
    return await part if inspect.isawaitable(part) else part
