"""Credit: rewards of attempts, of their parts and of their turns become advantages of the turns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from art_core.base.errors import ConfigError
from art_core.base.numbers import has_spread, number_or_none, population_std
from art_core.data.trajectory import Trajectory, TrajectoryGroup
from art_core.rl.advantages import AdvantageSpec, advantage_spec, balanced, step_advantages

if TYPE_CHECKING:
    from art_core.rl.config import TrainConfig

Table = list[list[float]]
"""A number for each turn of each attempt; attempts differ in their number of turns."""


@attrs.frozen
class Credit:
    """Advantages of an attempt: `turns` of the choices of its main conversation, `attempt` of its
    other conversations; without `turns`, `attempt` of all of them.
    """

    attempt: float
    turns: tuple[float, ...] | None = None

    @property
    def values(self) -> tuple[float, ...]:
        """All advantages."""
        return (self.attempt, *(self.turns or ()))


def step_credit(groups: Sequence[TrajectoryGroup], config: TrainConfig) -> list[list[Credit]]:
    """Return the credit of each trajectory, by group.

    Each reward is compared with those of its group: the reward of an attempt, or each of its parts
    (`reward_weights`), among all attempts; that of turn k among the attempts with a turn k. The
    advantage of a turn is the sum of its compared reward and those of later turns (process
    supervision, arXiv 2402.03300, section 4.1.3), times `discount` for each turn between. The
    reward of the attempt counts at its last turn. Raises ConfigError for turn rewards that do not
    fit, for a part that is missing, and for an advantage function that fails its form.
    """
    for group in groups:
        for trajectory in group:
            trajectory.check_turn_rewards()
    if config.advantage_fn is not None:
        found = _of_function(groups, advantage_spec(config.advantage_fn))
    else:
        found = _of_rewards(groups, config)
    balance = config.advantage_balance
    return [[_balanced(credit, balance) for credit in group] for group in found]


def step_rewards(groups: Sequence[TrajectoryGroup]) -> list[list[Credit]]:
    """Return the rewards of each trajectory's turns, by group, for a critic: the reward of the
    attempt is earned at the last turn. Another conversation of the attempt earns all at its end.
    """
    found = []
    for group in groups:
        for trajectory in group:
            trajectory.check_turn_rewards()
        found.append([_earned(trajectory) for trajectory in group])
    return found


def _earned(trajectory: Trajectory) -> Credit:
    turns = list(trajectory.turn_rewards or [0.0] * trajectory.num_turns())
    turns[-1:] = [reward + trajectory.reward for reward in turns[-1:]]
    return Credit(trajectory.total_reward, tuple(turns))


def _balanced(credit: Credit, balance: float) -> Credit:
    turns = credit.turns
    return Credit(
        balanced(credit.attempt, balance),
        None if turns is None else tuple(balanced(value, balance) for value in turns),
    )


def _of_rewards(groups: Sequence[TrajectoryGroup], config: TrainConfig) -> list[list[Credit]]:
    compared = _compared_parts if config.reward_weights else _compared_rewards
    return [
        [_discounted(*each, config.discount) for each in zip(outcomes, turns, strict=True)]
        for outcomes, turns in zip(
            compared(groups, config), _compared_turns(groups, config), strict=True
        )
    ]


def _discounted(outcome: float, turns: Sequence[float], discount: float) -> Credit:
    """Add up the compared rewards of each turn and of those after it, the attempt's at the end."""
    ahead, values = outcome, []
    for reward in reversed(turns):
        values.append(reward + ahead)
        ahead = discount * values[-1]
    values.reverse()
    if all(value == outcome for value in values):
        return Credit(outcome)
    return Credit(values[0], tuple(values))


def _compared_rewards(groups: Sequence[TrajectoryGroup], config: TrainConfig) -> Table:
    rewards = [[trajectory.reward for trajectory in group] for group in groups]
    compared = step_advantages(
        rewards,
        advantage_baseline=config.advantage_baseline,
        scale_rewards=config.scale_rewards,
    )
    if config.advantage_baseline != "scenario_mean":
        return compared
    every = [reward for group in rewards for reward in group]
    std = population_std(every) if config.scale_rewards == "batch" and has_spread(every) else 1.0
    return [
        with_group if group.baseline is None else _compared_with(group.baseline, own, std)
        for group, own, with_group in zip(groups, rewards, compared, strict=True)
    ]


def _compared_with(baseline: float, rewards: Sequence[float], std: float) -> list[float]:
    """Return rewards minus the mean of earlier steps (Single-stream Policy Optimization, arXiv
    2509.13232, keeps such a mean, and forgets), divided by a std.
    """
    return [(r - baseline) / std if has_spread([r, baseline]) else 0.0 for r in rewards]


def _compared_turns(groups: Sequence[TrajectoryGroup], config: TrainConfig) -> list[Table]:
    """Compare the rewards of turn k with those of the other attempts that have a turn k."""
    tables = [[t.turn_rewards or [0.0] * t.num_turns() for t in group] for group in groups]
    columns = step_advantages(
        [
            [row[k] for row in table if len(row) > k]
            for table in tables
            for k in range(_depth(table))
        ],
        advantage_baseline=config.advantage_baseline,
        scale_rewards=config.scale_rewards,
    )
    rest = iter(columns)
    return [_as_table(table, rest) for table in tables]


def _as_table(like: Table, columns: Iterator[Sequence[float]]) -> Table:
    """Take the columns of a table of this form, and return its rows."""
    taken = [iter(next(columns)) for _ in range(_depth(like))]
    return [[next(column) for column in taken[: len(row)]] for row in like]


def _depth(table: Table) -> int:
    return max(map(len, table), default=0)


def _compared_parts(groups: Sequence[TrajectoryGroup], config: TrainConfig) -> Table:
    """Compare each part of the reward by itself, and add the parts up with their weights.

    A part is divided by its own std in the group, or as `reward_scales` has it, so that different
    combinations of parts keep different advantages. `scale_rewards` divides the sums (GDPO, arXiv
    2601.05242, section 3.1).
    """
    sums = [[0.0] * len(group) for group in groups]
    for name, weight in (config.reward_weights or {}).items():
        compared = step_advantages(
            [[_part(trajectory, name) for trajectory in group] for group in groups],
            advantage_baseline=config.advantage_baseline,
            scale_rewards=(config.reward_scales or {}).get(name, "group"),
        )
        sums = [
            [total + weight * value for total, value in zip(*each, strict=True)]
            for each in zip(sums, compared, strict=True)
        ]
    if config.scale_rewards in (False, "none"):
        return sums
    every = [value for group in sums for value in group]
    of_batch = config.scale_rewards == "batch"
    return [_divided(group, every if of_batch else group) for group in sums]


def _divided(values: Sequence[float], among: Sequence[float]) -> list[float]:
    std = population_std(among) if has_spread(among) else 1.0
    return [value / std for value in values]


def _part(trajectory: Trajectory, name: str) -> float:
    value = trajectory.reward if name == "reward" else trajectory.metrics.get(name)
    number = number_or_none(+value if isinstance(value, bool) else value)
    if number is None:
        known = ", ".join(trajectory.metrics) or "none"
        raise ConfigError(
            f"reward_weights names {name!r}, and an attempt has {name}={value!r:.80}; it has the "
            f"metrics: {known}",
            f"Set trajectory.metrics[{name!r}] to a finite number in each attempt.",
        )
    return number


def _of_function(groups: Sequence[TrajectoryGroup], spec: AdvantageSpec) -> list[list[Credit]]:
    function = spec.create()
    if not callable(function):
        raise ConfigError(f"advantage_fn {spec.name!r} is no function: {function!r:.80}")
    found = []
    for group in groups:
        answer: Any = function(group.trajectories)
        values = list(answer) if hasattr(answer, "__iter__") else [answer]
        if len(values) != len(group):
            raise ConfigError(
                f"advantage_fn {spec.name!r} returned {len(values)} advantages for a group of "
                f"{len(group)} attempts",
                "Return one for each trajectory: a number, or a list of one for each choice.",
            )
        pairs = zip(group.trajectories, values, strict=True)
        found.append([_credit_of(spec.name, *pair) for pair in pairs])
    return found


def _credit_of(name: str, trajectory: Trajectory, value: Any) -> Credit:
    one = not hasattr(value, "__iter__") or isinstance(value, str)
    numbers = [number_or_none(each) for each in ([value] if one else value)]
    known = tuple(number for number in numbers if number is not None)
    if len(known) < len(numbers):
        raise ConfigError(
            f"advantage_fn {name!r} returned {value!r:.80}, where finite numbers were expected"
        )
    if one:
        return Credit(known[0])
    if len(known) != trajectory.num_turns():
        raise ConfigError(
            f"advantage_fn {name!r} returned {len(known)} advantages for the turns of an attempt "
            f"with {trajectory.num_turns()} choices"
        )
    return Credit(known[0] if known else 0.0, known)
