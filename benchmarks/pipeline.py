"""Rollouts and training at the same time against one after the other.

The speed is measured on simulated work: an attempt sleeps for a lognormal time before it asks the
echo backend, a step of training sleeps for a fixed one. Both ways make 32 attempts at once and
train 8 groups of 4 a step. No way can be faster than the bound: the time that the trained attempts
took, over 32, or that of all training steps, and one step after the last attempt. The learning is
that of `examples/dice_agent.py`, whose rolls of the dice wait for a lognormal time here, as calls
of a tool do; SmolLM2 plays as many games both ways, from several seeds.

    python benchmarks/pipeline.py                          the speed, about three minutes
    python benchmarks/pipeline.py --dice --figure FILE     the learning too: an hour on two cores
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import itertools
import json
import logging
import math
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import art_core as art
from art_core.evaluation.statistics import clustered
from art_core.testing.echo import EchoBackend

EXAMPLE = Path(__file__).parent.parent / "examples" / "dice_agent.py"
STEPS, GROUPS, ATTEMPTS = 32, 8, 4
MEAN_S, SIGMA, TRAIN_S = 1.5, 0.6, 1.2
ROLL_S, ROLL_SIGMA = 1.5, 0.8
DICE_STEPS, DICE_GROUPS, DICE_ATTEMPTS = 12, 12, 8
LAST = 4
"""The last steps of a run, whose rewards are compared."""
TARGETS = {"over_synchronous": 1.6, "of_bound": 0.9}
Rows = list[art.MetricsRow]


def lognormal(draw: random.Random, mean: float, sigma: float) -> float:
    """Return a lognormal number whose mean is the given one."""
    return draw.lognormvariate(math.log(mean) - sigma**2 / 2, sigma)


class SleepingBackend(EchoBackend):
    """An echo whose training takes a fixed time."""

    async def train(self, model: Any, groups: Any, **options: Any) -> art.TrainResult:
        await asyncio.sleep(TRAIN_S)
        result = await super().train(model, groups, **options)
        result.metrics["time/step_trainer_s"] += TRAIN_S
        return result


class SleepingRollout:
    """Attempts that take a time that depends on the scenario and the number of the attempt."""

    def __init__(self) -> None:
        self.made: Counter[int] = Counter()

    async def __call__(self, model: art.TrainableModel, scenario: int) -> art.Trajectory:
        draw = random.Random(f"{scenario} {self.made[scenario]}")
        self.made[scenario] += 1
        began = time.monotonic()
        messages = [{"role": "user", "content": f"{scenario}"}]
        trajectory = art.Trajectory(messages_and_choices=messages, reward=draw.random())
        await asyncio.sleep(lognormal(draw, MEAN_S, SIGMA))
        completion = await model.openai_client().chat.completions.create(
            model=model.get_inference_name(), messages=messages
        )
        trajectory.messages_and_choices.append(completion.choices[0])
        trajectory.metrics["took"] = time.monotonic() - began
        return trajectory


async def synchronous(
    model: art.TrainableModel, rollout: Any, steps: int, size: tuple[int, int], **options: Any
) -> None:
    """The loop: gather, train, again."""
    groups, attempts = size
    for step in range(steps):
        gathered = await art.gather_trajectory_groups(
            (
                art.TrajectoryGroup(rollout(model, scenario) for _ in range(attempts))
                for scenario in range(step * groups, (step + 1) * groups)
            ),
            pbar_desc=None,
        )
        await model.train(gathered, **options)


async def pipelined(
    model: art.TrainableModel, rollout: Any, steps: int, size: tuple[int, int], **options: Any
) -> None:
    """As many groups and attempts in steps of the same size."""
    groups, attempts = size
    await art.pipeline(
        model,
        range(10 * steps * groups),
        rollout,
        steps=steps,
        attempts=attempts,
        min_batch_size=groups,
        max_batch_size=groups,
        max_concurrent=groups * attempts,
        zero_variance="drop",
        progress=False,
        **options,
    )


WAYS = {"pipeline": pipelined, "synchronous": synchronous}


async def simulated(way: str) -> tuple[float, Rows]:
    """Return the seconds of a run, and its rows."""
    backend = SleepingBackend()
    with tempfile.TemporaryDirectory() as folder:
        model = art.TrainableModel(
            name=way, project="bench", base_model="echo", base_path=folder, sinks=[]
        )
        async with model:
            await model.register(backend)
            await SleepingRollout()(model, -1)  # imports what the first request needs
            began = time.monotonic()
            await WAYS[way](model, SleepingRollout(), STEPS, (GROUPS, ATTEMPTS))
            seconds = time.monotonic() - began
        rows = list(art.open_run(model.run_dir).rows(split="train"))
    await backend.close()
    return seconds, rows


def speed() -> dict[str, float]:
    """Measure both ways; print and return the figures."""
    seconds, rows = {}, {}
    for way in WAYS:
        seconds[way], rows[way] = asyncio.run(simulated(way))
    trained = [row.metrics for row in rows["pipeline"] if "reward/mean" in row.metrics]
    took = sum(m["reward/took"] * m["data/step_num_trajectories"] for m in trained)
    bound = max(took / (GROUPS * ATTEMPTS), STEPS * TRAIN_S) + TRAIN_S
    last = trained[-1]
    figures = {
        "over_synchronous": seconds["synchronous"] / seconds["pipeline"],
        "of_bound": bound / seconds["pipeline"],
        "stale_groups": last["pipeline/cum/num_groups_stale"],
        "steps_off_policy": sum(m["offpolicy/steps_mean"] for m in trained) / len(trained),
        "trainer_idle": last["throughput/cum/trainer_idle_s"] / seconds["pipeline"],
        "actor_idle": last["throughput/cum/actor_idle_s"] / seconds["pipeline"],
    }
    print(f"{STEPS} steps: synchronous {seconds['synchronous']:.1f} s, pipeline", end=" ")
    print(f"{seconds['pipeline']:.1f} s, bound {bound:.1f} s")
    return figures


def dice_example() -> Any:
    spec = importlib.util.spec_from_file_location("dice_agent", EXAMPLE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def dice(way: str, seed: int) -> Rows:
    """Train on the dice one way, from a seed of the adapter and of the games; return the rows."""
    example = dice_example()
    backend = art.backend("local", engine="transformers", seed=seed, progress=False)
    numbers = itertools.count()

    async def rollout(model: art.TrainableModel, game: int) -> art.Trajectory:
        draw = random.Random(f"{seed} {game} {next(numbers)}")
        await asyncio.sleep(lognormal(draw, ROLL_S, ROLL_SIGMA))
        return await example.rollout(model, 100_000 * seed + game)

    with tempfile.TemporaryDirectory() as folder:
        model = art.TrainableModel(
            name=f"{way}-{seed}",
            project="dice",
            base_model=example.MODEL,
            base_path=folder,
            sinks=["console"],
        )
        async with model:
            await model.register(backend)
            size = (DICE_GROUPS, DICE_ATTEMPTS)
            await WAYS[way](
                model, rollout, DICE_STEPS, size, learning_rate=2e-4, mask_truncated=False
            )
        rows = list(art.open_run(model.run_dir).rows(split="train"))
    await backend.close()
    return [row for row in rows if "reward/mean" in row.metrics]


Curve = list[tuple[float, float, float]]
"""Seconds, attempts and the mean reward, of each step."""


def curve(rows: Rows) -> Curve:
    return [
        (
            row.metrics["time/wall_clock_sec"],
            row.metrics["data/cum/num_trajectories"],
            row.metrics["reward/mean"],
        )
        for row in rows
    ]


def learning(seeds: int, kept: Path | None) -> tuple[dict[str, float], dict[str, list[Curve]]]:
    """Train from each seed both ways; return the figures and the curves."""
    curves: dict[str, list[Curve]] = {way: [] for way in WAYS}
    for seed in range(seeds):
        for way in WAYS:
            curves[way].append(curve(asyncio.run(dice(way, seed))))
            if kept is not None:
                kept.write_text(json.dumps(curves))
    ends = {
        way: [sum(reward for *_, reward in run[-LAST:]) / LAST for run in runs]
        for way, runs in curves.items()
    }
    pairs = zip(ends["pipeline"], ends["synchronous"], strict=True)
    apart = clustered({str(seed): [one - other] for seed, (one, other) in enumerate(pairs)})
    figures = {f"reward_{way}": sum(values) / len(values) for way, values in ends.items()}
    figures |= {"apart": apart.mean, "apart_low": apart.low, "apart_high": apart.high}
    took = {way: sum(run[-1][0] for run in runs) for way, runs in curves.items()}
    figures["dice_over_synchronous"] = took["synchronous"] / took["pipeline"]
    return figures, curves


def draw_figure(curves: dict[str, list[Curve]], file: Path) -> None:
    import matplotlib.pyplot as plt

    colors = {"synchronous": "#888888", "pipeline": "#1f77b4"}
    figure, (over_time, over_attempts) = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    for way, runs in curves.items():
        for number, run in enumerate(runs):
            seconds, attempts, rewards = zip(*run, strict=True)
            label = way if number == 0 else None
            over_time.plot([s / 60 for s in seconds], rewards, color=colors[way], label=label)
            over_attempts.plot(attempts, rewards, color=colors[way])
    over_time.set(xlabel="minutes", ylabel="mean reward of a step")
    over_attempts.set(xlabel="games played")
    over_time.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dice", action="store_true", help="also compare what is learned")
    parser.add_argument("--seeds", type=int, default=3, help="runs of the dice for each way")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the curves of the dice")
    parser.add_argument("--curves", type=Path, metavar="FILE", help="keep them as JSON")
    arguments = parser.parse_args()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    os.environ.setdefault("ART_PROGRESS", "lines")
    figures = speed()
    held = all(figures[name] >= least for name, least in TARGETS.items())
    if arguments.dice:
        learned, curves = learning(arguments.seeds, arguments.curves)
        figures |= learned
        held = held and learned["apart_low"] <= 0 <= learned["apart_high"]
        if arguments.figure:
            draw_figure(curves, arguments.figure)
    for name, value in figures.items():
        print(f"{name:<22}{value:10.3f}")
    rounded = {name: float(f"{value:.3g}") for name, value in figures.items()}
    print(json.dumps({"name": "pipeline", **rounded, "targets": TARGETS, "held": held}))
    sys.exit(not held)


if __name__ == "__main__":
    main()
