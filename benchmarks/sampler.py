"""Measure what a sampler of scenarios earns: reward per dollar, against taking each in its turn.

A made-up learner stands for the model. Its chance at a scenario is a logistic function of its skill
minus the scenario's difficulty; its skill grows with the variance of the rewards of a group, as a
policy gradient does, for all scenarios a little and for the group's own more. A dollar is a number
of tokens. Both arms have the same dollars, the same attempts per group and the same learner;
`art.ScenarioSampler` reads what it knows from the trajectory files of a run, as in training.
Reward per dollar is the gain of the mean reward over the whole pool per dollar. On pools where
nothing can be gained, it is the mean reward at the end. The dollars do not suffice to learn all
that fits: the more of it is learned, the less is left to win.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import statistics
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import attrs

import art_core as art
from art_core.data.dataset import places
from art_core.data.store import append_groups, trajectory_file

GROUPS, ATTEMPTS, POOL, BUDGET = 8, 8, 120, 80_000
EASY, FIT, HOPELESS = -5.0, 0.0, 9.0
Gather = Callable[
    [int, Callable[[str], Awaitable[art.Trajectory]]], Awaitable[list[art.TrajectoryGroup]]
]


@attrs.define
class Learner:
    """A model that learns from the spread of rewards."""

    difficulty: Mapping[str, float]
    tokens: Mapping[str, int]
    chance: random.Random
    skill: float = 0.0
    own: dict[str, float] = attrs.field(factory=dict)
    spent: int = 0

    def success(self, name: str) -> float:
        """Return the chance of an attempt at a scenario."""
        return 1 / (1 + math.exp(self.difficulty[name] - self.skill - self.own.get(name, 0.0)))

    async def attempt(self, name: str) -> art.Trajectory:
        """Make an attempt, whose tokens are paid."""
        self.spent += self.tokens[name]
        ids = [0] * (self.tokens[name] - 1)
        choice = {
            "message": {"role": "assistant", "content": ""}, "finish_reason": "stop",
            "prompt_token_ids": [1], "token_ids": ids,
            "logprobs": {"content": []},
        }  # fmt: skip
        reward = float(self.chance.random() < self.success(name))
        return art.Trajectory(messages_and_choices=[choice], reward=reward)

    def learn(self, groups: list[art.TrajectoryGroup]) -> None:
        """Gain skill by the variance of each group's rewards, summed over its attempts."""
        for group in groups:
            mean = statistics.fmean(group.rewards)
            signal = len(group) * mean * (1 - mean)
            name = group.metadata["scenario_id"]
            self.own[name] = self.own.get(name, 0.0) + 0.1 * signal
            self.skill += 0.001 * signal

    def reward(self) -> float:
        """Return the mean reward over the pool."""
        return statistics.fmean(map(self.success, self.difficulty))


def pool(kind: str, chance: random.Random) -> tuple[dict[str, float], dict[str, int]]:
    """Return the difficulty of each scenario of a pool, and its tokens."""
    kinds = {
        "mixed": (EASY, FIT, HOPELESS), "mixed, costs differ": (EASY, FIT, HOPELESS),
        "all fit": (FIT,), "all easy": (EASY,), "all hopeless": (HOPELESS,),
    }[kind]  # fmt: skip
    names = [f"s{number}" for number in range(POOL)]
    difficulty = {n: kinds[i % len(kinds)] + chance.gauss(0, 0.7) for i, n in enumerate(names)}
    costs = (10, 20, 80) if kind.endswith("differ") else (20,)
    return difficulty, {name: costs[(i // 3) % len(costs)] for i, name in enumerate(names)}


async def trained(
    gather: Gather, learner: Learner, run_dir: Path, budget: int
) -> tuple[float, float]:
    """Train until the budget is spent; return the gain per million tokens, and the last reward."""
    before, step = learner.reward(), 0
    while learner.spent < budget:
        groups = await gather(step, learner.attempt)
        append_groups(trajectory_file(run_dir, "train", step + 1), groups)
        learner.learn(groups)
        step += 1
    return (learner.reward() - before) / learner.spent * 1e6, learner.reward()


def uniform(names: list[str], seed: int) -> Gather:
    """Return what takes each scenario in its turn."""

    async def gather(
        step: int, rollout: Callable[[str], Awaitable[art.Trajectory]]
    ) -> list[art.TrajectoryGroup]:
        taken = places(len(names), step * GROUPS, (step + 1) * GROUPS, seed)
        return await art.gather_trajectory_groups(
            (
                art.TrajectoryGroup(
                    (rollout(names[index]) for _ in range(ATTEMPTS)),
                    metadata={"scenario_id": names[index]},
                )
                for _, index in taken
            ),
            pbar_desc=None,
        )

    return gather


async def compared(kind: str, seed: int, budget: int) -> tuple[float, float]:
    """Return reward per dollar of the sampler and of the other arm, on the same pool."""
    difficulty, tokens = pool(kind, random.Random(f"pool {seed}"))
    found = []
    for arm in ("sampler", "uniform"):
        learner = Learner(difficulty, tokens, random.Random(f"{arm} {seed}"))
        with tempfile.TemporaryDirectory() as directory:
            run_dir = Path(directory)
            if arm == "sampler":
                made = art.ScenarioSampler(
                    scenarios=list(difficulty), run_dir=run_dir, groups=GROUPS, attempts=ATTEMPTS,
                    seed=seed,
                )  # fmt: skip

                async def gather(
                    step: int,
                    rollout: Callable[[str], Awaitable[art.Trajectory]],
                    made: art.ScenarioSampler = made,
                ) -> list[art.TrajectoryGroup]:
                    return await made.gather(step, rollout, pbar_desc=None)

            else:
                gather = uniform(list(difficulty), seed)
            gain, reward = await trained(gather, learner, run_dir, budget)
        found.append(reward if kind in ("all easy", "all hopeless") else gain)
    return found[0], found[1]


KINDS = {"mixed": 1.5, "mixed, costs differ": 1.5, "all fit": 0.95, "all easy": 0.95,
         "all hopeless": 0.95}  # fmt: skip


async def main() -> None:
    """Print a table, and last one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="learners of each pool (default 3)")
    parser.add_argument("--budget", type=int, default=BUDGET, help="tokens of a run")
    args = parser.parse_args()
    figures, targets = {}, {}
    print(f"{'pool':22} {'sampler':>9} {'in turn':>9} {'ratio':>6}")
    for kind, least in KINDS.items():
        pairs = [await compared(kind, seed, args.budget) for seed in range(args.seeds)]
        ours, theirs = (statistics.fmean(arm) for arm in zip(*pairs, strict=True))
        name = kind.replace(", ", "_").replace(" ", "_")
        figures[name] = round(ours / theirs, 3)
        targets[name] = least
        print(f"{kind:22} {ours:9.4f} {theirs:9.4f} {figures[name]:6.2f}  at least {least}")
    held = all(figures[name] >= least for name, least in targets.items())
    print(json.dumps({"name": "sampler", "figures": figures, "targets": targets, "held": held}))


if __name__ == "__main__":
    asyncio.run(main())
