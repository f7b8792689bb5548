"""Advantages: the reward of an attempt compared with its group, or a function of your own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from art_core.base.errors import ConfigError
from art_core.base.numbers import centred, has_spread, population_std

if TYPE_CHECKING:
    from art_core.data.trajectory import Trajectory


BASELINES = ("group_mean", "rloo", "leave_one_out", "scenario_mean", "value")
SCALES = ("group", "batch", "none")


def step_advantages(
    groups: Sequence[Sequence[float]],
    *,
    advantage_baseline: str = "group_mean",
    scale_rewards: bool | str = False,
    advantage_balance: float = 0.0,
) -> list[list[float]]:
    """Advantages of all groups of a step: reward minus a baseline, divided by a std, balanced.

    `advantage_baseline`: the group's mean (GRPO, arXiv 2402.03300, section 4.1.2), or "rloo", also
    named "leave_one_out", the mean of the *other* attempts (RLOO, arXiv 2402.14740): advantages
    are then G / (G - 1) times as large. With "scenario_mean", what has no mean of earlier steps is
    compared with the group's mean.

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
    left_out = baseline in ("rloo", "leave_one_out")
    others = len(rewards) / (len(rewards) - 1) if left_out else 1.0
    std = batch_std or (population_std(rewards) if scale_rewards in (True, "group") else 1.0)
    return [balanced(r * others / std, balance) for r in centred(rewards)]


def balanced(advantage: float, balance: float) -> float:
    """Return an advantage, weakened by `advantage_balance` (see `step_advantages`)."""
    up, down = balance_factors(balance)
    return advantage * (up if advantage > 0 else down)


def balance_factors(balance: float) -> tuple[float, float]:
    """Return what `advantage_balance` multiplies positive and negative advantages by."""
    return min(1.0, 1.0 + balance), min(1.0, 1.0 - balance)


def generalized_advantages(
    rewards: Sequence[float], values: Sequence[float], *, gamma: float = 1.0, lam: float = 0.95
) -> list[float]:
    """Return generalized advantage estimates (GAE, arXiv 1506.02438, equation 16) of an episode.

    A_t = d_t + gamma * lam * A_{t+1} with d_t = r_t + gamma * V(s_{t+1}) - V(s_t), where `values`
    are V(s_t) of the states before each action; after the last action V and A are 0.
    """
    found: list[float] = []
    advantage = following = 0.0
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        advantage = reward + gamma * following - value + gamma * lam * advantage
        following = value
        found.append(advantage)
    return found[::-1]


AdvantageFunction = Callable[[Sequence["Trajectory"]], Sequence[float | Sequence[float]]]
"""Takes the trajectories of one group; returns the advantage of each, or of each of its choices."""


@attrs.frozen(kw_only=True)
class AdvantageSpec:
    """Advantages of your own: `create()` imports what is heavy and returns a function from the
    trajectories of a group to the advantage of each: a number, or a list with one for each choice
    of its main conversation.
    """

    name: str
    create: Callable[[], AdvantageFunction]
    summary: str = ""


def advantage_spec(named: str | AdvantageSpec) -> AdvantageSpec:
    """Return the spec of a function's "module:function", which is not imported here; ConfigError
    for another name.
    """
    if isinstance(named, AdvantageSpec):
        return named
    if not isinstance(named, str) or ":" not in named:
        raise ConfigError(
            f"no advantages {named!r:.80}: no plugin offers them",
            'A function of your own is named by its import path, "my_module:my_advantages".',
        )
    create = importer(named, "function for advantages", AdvantageSpec)
    return AdvantageSpec(name=named, create=create)


def importer(path: str, kind: str, spec: type[Any]) -> Callable[[], Any]:
    """Return a function that imports "module:function", or makes what a spec "module:attribute"
    makes; ConfigError if it is not such a path, and from the function if there is no such thing.
    """
    module, _, name = path.partition(":")
    if not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise ConfigError(f'a {kind} is named "module:function", got {path!r}')

    def create() -> Any:
        import importlib

        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"the {kind} {path!r} can't be imported: {error}",
                "It must be importable where the trainer runs: install it, or set PYTHONPATH.",
            ) from error
        return found.create() if isinstance(found, spec) else found

    return create
