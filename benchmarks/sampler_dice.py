"""Train the agent of examples/dice_agent.py with a sampler of scenarios and without: real weights.

From each seed both arms begin at the same weights, play games of the same pool, and stop at the
step that spends the last of the same dollars, without those of evaluations
(`signal/cum/evaluation`). Reward per dollar is the gain of the mean reward over the pool, measured
by evaluations before and after. A game that is lost by its first roll teaches nothing: all attempts
at it have the same reward. `--lost` is the share of such games in the pool, a third by chance.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import runpy
import tempfile
from collections.abc import Sequence
from pathlib import Path

import art_core as art
from art_core.data.dataset import places

EXAMPLE = runpy.run_path(str(Path(__file__).parent.parent / "examples" / "dice_agent.py"))
GROUPS, ATTEMPTS = 8, 8


async def played(
    model: art.TrainableModel, games: list[int], attempts: int
) -> list[art.TrajectoryGroup]:
    """Return a group of attempts at each game."""
    return await art.gather_trajectory_groups(
        (
            art.TrajectoryGroup(
                (EXAMPLE["rollout"](model, game) for _ in range(attempts)),
                metadata={"scenario_id": str(game)},
            )
            for game in games
        ),
        pbar_desc=None,
    )


def pool_of(seed: int, size: int, lost: float) -> Sequence[int]:
    """Return games of which a share is lost by the first roll, mixed."""
    games = itertools.count(1000 * seed)
    wanted = {True: round(size * lost), False: size - round(size * lost)}
    pool: list[int] = []
    while len(pool) < size:
        game = next(games)
        is_lost = random.Random(game).randint(1, 6) <= 2
        if wanted[is_lost]:
            wanted[is_lost] -= 1
            pool.append(game)
    return pool


async def reward_of(model: art.TrainableModel, pool: Sequence[int], repeats: int) -> float:
    """Return the mean reward over the pool, and log it as an evaluation."""
    row = await model.log(await played(model, list(pool), repeats), split="val")
    return row.metrics["val/reward"]


async def arm(
    name: str, seed: int, pool: Sequence[int], budget: float, repeats: int, base: str
) -> dict[str, float]:
    """Train one arm until its dollars are spent; return what it gained and spent."""
    async with art.TrainableModel(
        name=f"{name}-{seed}",
        project="dice",
        base_model=EXAMPLE["MODEL"],
        base_path=base,
        sinks=[],
    ) as model:
        place = art.backend(
            "local", device="cpu", seed=seed, gpu_cost_per_hour_usd=3.6, progress=False
        )
        await model.register(place)
        before = await reward_of(model, pool, repeats)
        sampler = art.ScenarioSampler(
            scenarios=pool, run_dir=model.run_dir, groups=GROUPS, attempts=ATTEMPTS, seed=seed
        )
        step, spent, totals = 0, 0.0, {}
        while spent < budget:
            if name == "sampler":
                groups = await sampler.gather(
                    step, lambda game: EXAMPLE["rollout"](model, game), pbar_desc=None
                )
            else:
                taken = places(len(pool), step * GROUPS, (step + 1) * GROUPS, seed)
                groups = await played(model, [pool[index] for _, index in taken], ATTEMPTS)
            await model.train(
                groups, learning_rate=2e-4, mask_truncated=False, save_checkpoint=False
            )
            step += 1
            totals = list(art.LoggedRun(model.run_dir).rows())[-1].metrics
            spent = totals["costs/cum/all"] - totals.get("signal/cum/evaluation", 0.0)
            print(
                f"{name} step {step}: ${spent:.4f}, reward {totals['reward/mean']:.3f}", flush=True
            )
        taught = totals.get("signal/cum/learned", 0.0) / spent
        after = await reward_of(model, pool, repeats)
        await place.close()
    return {
        "before": before, "after": after, "gain": after - before, "usd": spent, "steps": step,
        "taught": taught, "tokens": totals["data/cum/actor_tokens"],
    }  # fmt: skip


def total(runs: list[dict[str, float]], key: str) -> float:
    """Return the sum of a figure over runs."""
    return sum(run[key] for run in runs)


def per_dollar(runs: list[dict[str, float]]) -> float:
    """Return the reward that runs gained per dollar."""
    return total(runs, "gain") / total(runs, "usd")


async def main() -> None:
    """Print what both arms gained, and last one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", type=float, default=0.15, help="dollars of each arm (0.15)")
    parser.add_argument("--pool", type=int, default=36, help="games of the pool (36)")
    parser.add_argument("--lost", type=float, default=0.33, help="share of lost games (0.33)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each arm (3)")
    parser.add_argument("--repeats", type=int, default=6, help="attempts of evaluations (6)")
    args = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {"in_turn": [], "sampler": []}
    with tempfile.TemporaryDirectory() as base:
        for seed in range(args.seeds):
            for name, runs in found.items():
                pool = pool_of(seed, args.pool, args.lost)
                runs.append(await arm(name, seed, pool, args.budget, args.repeats, base))
                print(name, {k: round(value, 4) for k, value in runs[-1].items()}, flush=True)
    ours, theirs = found["sampler"], found["in_turn"]
    figures = {
        "reward_per_dollar": round(per_dollar(ours) / per_dollar(theirs), 3),
        "taught": round(total(ours, "taught") / total(theirs, "taught"), 3),
    }
    targets = {"reward_per_dollar": 1.0, "taught": 1.0}
    held = all(figures[name] > least for name, least in targets.items())
    print(
        json.dumps({"name": "sampler_dice", "figures": figures, "targets": targets, "held": held})
    )


if __name__ == "__main__":
    asyncio.run(main())
