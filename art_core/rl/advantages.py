"""How much better than its group an attempt was."""

from __future__ import annotations

import math
from collections.abc import Sequence

SPREAD_TOLERANCE = 1e-12
"""Rewards closer together than this are equal: a float std of equal rewards is not exactly 0."""


def has_spread(rewards: Sequence[float]) -> bool:
    """Tell whether a group can teach anything: more than one attempt, and rewards that differ."""
    return len(rewards) > 1 and max(rewards) - min(rewards) > SPREAD_TOLERANCE


def population_std(rewards: Sequence[float]) -> float:
    """Population standard deviation of rewards [G]."""
    mean = math.fsum(rewards) / len(rewards)
    return math.sqrt(math.fsum((r - mean) ** 2 for r in rewards) / len(rewards))


def group_advantages(
    rewards: Sequence[float], *, scale_rewards: bool = False, advantage_balance: float = 0.0
) -> list[float]:
    """Advantages [G] of one group: reward minus the group's mean.

    GRPO (arXiv 2402.03300, section 4.1.2) also divides by the group's std: `scale_rewards=True`;
    Dr. GRPO (2503.20783, section 3.2) shows that this weighs easy and hard groups up, so the
    default does not. `advantage_balance` in [-1, 1] weakens negative advantages when positive (at 1
    they are gone) and positive ones when negative. A group without spread gives zeros.
    """
    if not has_spread(rewards):
        return [0.0] * len(rewards)
    mean = math.fsum(rewards) / len(rewards)
    std = population_std(rewards) if scale_rewards else 1.0
    up, down = min(1.0, 1.0 + advantage_balance), min(1.0, 1.0 - advantage_balance)
    centred = [(r - mean) / std for r in rewards]
    return [a * (up if a > 0 else down) for a in centred]
