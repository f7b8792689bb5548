"""Advantages: the reward of an attempt compared with its group."""

from __future__ import annotations

import math
from collections.abc import Sequence

SPREAD_TOLERANCE = 1e-12
"""Rewards are equal when they differ by at most this share of the largest one, or of 1 if all are
smaller: sums of floats that are equal on paper differ in their last digits.
"""

BASELINES = ("group_mean", "rloo")
SCALES = ("group", "batch", "none")


def has_spread(rewards: Sequence[float]) -> bool:
    """Return whether a group can teach anything: its rewards differ by more than rounding."""
    if len(rewards) < 2:
        return False
    low, high = min(rewards), max(rewards)
    return high - low > SPREAD_TOLERANCE * max(1.0, -low, high)


def population_std(rewards: Sequence[float]) -> float:
    """Return the population standard deviation of rewards [G]."""
    # `hypot` makes no squares, which would overflow for large rewards
    return math.hypot(*_centred(rewards)) / math.sqrt(len(rewards))


def _centred(rewards: Sequence[float]) -> list[float]:
    """Return rewards minus their mean, as exact as the differences between the rewards.

    A mean of large rewards is rounded by more than close rewards differ. Differences from the first
    reward are exact for close rewards, and so is their mean. Halves keep differences finite.
    """
    halves = [reward / 2 for reward in rewards]
    differences = [half - halves[0] for half in halves]
    mean = sum(difference / len(rewards) for difference in differences)
    return [2 * (difference - mean) for difference in differences]


def step_advantages(
    groups: Sequence[Sequence[float]],
    *,
    advantage_baseline: str = "group_mean",
    scale_rewards: bool | str = False,
    advantage_balance: float = 0.0,
) -> list[list[float]]:
    """Advantages of all groups of a step: reward minus a baseline, divided by a std, balanced.

    `advantage_baseline`: the group's mean (GRPO, arXiv 2402.03300, section 4.1.2), or "rloo", the
    mean of the *other* attempts (leave-one-out: RLOO, arXiv 2402.14740), which is
    G / (G - 1) times as large.

    `scale_rewards`: False or "none"; True or "group" divides by the group's std, as GRPO does (Dr.
    GRPO, 2503.20783, section 3.2, shows that this weighs easy and hard groups up, so the default
    does not); "batch" by the std of all rewards of the step (2508.08221). All are population
    stds.

    `advantage_balance` in [-1, 1] weakens negative advantages when positive (at 1 they are gone)
    and positive ones when negative. A group without spread gives zeros.
    """
    every = [reward for group in groups for reward in group]
    std = population_std(every) if scale_rewards == "batch" and has_spread(every) else None
    return [
        _group(group, advantage_baseline, scale_rewards, std, advantage_balance) for group in groups
    ]


def _group(
    rewards: Sequence[float],
    baseline: str,
    scale_rewards: bool | str,  # noqa: FBT001
    batch_std: float | None,
    balance: float,
) -> list[float]:
    if not has_spread(rewards):
        return [0.0] * len(rewards)
    others = len(rewards) / (len(rewards) - 1) if baseline == "rloo" else 1.0
    std = batch_std or (population_std(rewards) if scale_rewards in (True, "group") else 1.0)
    up, down = min(1.0, 1.0 + balance), min(1.0, 1.0 - balance)
    centred = [r * others / std for r in _centred(rewards)]
    return [a * (up if a > 0 else down) for a in centred]
