"""Rollouts and training at the same time against one after the other.

The speed is measured on simulated work: an attempt sleeps for a lognormal time before it asks the
echo backend, a step of training sleeps for a fixed one. Both ways make 32 attempts at once and
train 8 groups of 4 a step. No way can be faster than the bound: the time that the trained attempts
took, over 32, or that of all training steps, and one step after the last attempt. What is
learned is compared on a task that a model of half a million parameters learns, lower-case letters,
and with `--dice` on that of `examples/dice_agent.py`. Attempts wait for a lognormal time first, as
for a tool. Both ways make as many attempts, from several seeds.

    python benchmarks/pipeline.py                  about six minutes
    python benchmarks/pipeline.py --dice           and a quarter of an hour more
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import itertools
import json
import math
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

import art_core as art
from art_core.evaluation.statistics import clustered
from art_core.testing.echo import EchoBackend

EXAMPLE = Path(__file__).parent.parent / "examples" / "dice_agent.py"
STEPS, GROUPS, ATTEMPTS = 32, 8, 4
MEAN_S, SIGMA, TRAIN_S = 1.5, 0.6, 1.2
LAST = 4
"""The last steps of a run, whose rewards are compared."""
GOAL = 0.8
"""The reward of a step whose attempts until then are compared."""
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


@attrs.frozen(kw_only=True)
class Task:
    """Something to learn: steps of groups of attempts, and how a model of a seed is trained."""

    base: str
    rollout: Callable[[art.TrainableModel, int], Awaitable[art.Trajectory]]
    steps: int
    groups: int
    attempts: int
    wait_s: float
    backend: Mapping[str, Any]
    train: Mapping[str, Any]


def dice() -> Task:
    """Return the games of the example."""
    example = dice_example()
    return Task(
        base=example.MODEL,
        rollout=example.rollout,
        steps=12,
        groups=12,
        attempts=8,
        wait_s=1.5,
        backend={},
        train={"learning_rate": 2e-4},
    )


def letters(folder: Path) -> Task:
    """Return a task whose reward is the share of lower-case letters in an answer."""
    from art_local.testing.tiny import save_tiny_model

    async def rollout(model: art.TrainableModel, number: int) -> art.Trajectory:
        messages = [{"role": "user", "content": chr(97 + number % 26)}]
        completion = await model.openai_client().chat.completions.create(
            model=model.get_inference_name(), messages=messages, max_tokens=8
        )
        choice = completion.choices[0]
        share = sum(97 <= token <= 122 for token in choice.token_ids) / 8
        return art.Trajectory(messages_and_choices=[*messages, choice], reward=share)

    return Task(
        base=str(save_tiny_model(folder / "tiny")),
        rollout=rollout,
        steps=24,
        groups=4,
        attempts=8,
        wait_s=0.4,
        backend={"dtype": "float32", "full_finetune": True},
        train={"learning_rate": 5e-3},
    )


async def learned(task: Task, way: str, seed: int) -> Rows:
    """Train on a task one way, from a seed of the adapter and of the scenarios; return the rows."""
    backend = art.backend(
        "local", engine="transformers", device="cpu", seed=seed, progress=False, **task.backend
    )
    numbers = itertools.count()

    async def rollout(model: art.TrainableModel, number: int) -> art.Trajectory:
        draw = random.Random(f"{seed} {number} {next(numbers)}")
        await asyncio.sleep(lognormal(draw, task.wait_s, SIGMA))
        return await task.rollout(model, 100_000 * seed + number)

    with tempfile.TemporaryDirectory() as folder:
        model = art.TrainableModel(
            name=f"{way}-{seed}",
            project="bench",
            base_model=task.base,
            base_path=folder,
            sinks=[],
        )
        async with model:
            await model.register(backend)
            size = (task.groups, task.attempts)
            await WAYS[way](model, rollout, task.steps, size, mask_truncated=False, **task.train)
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


def learning(
    task: Task, seeds: int, kept: Path | None
) -> tuple[dict[str, float], dict[str, list[Curve]]]:
    """Train from each seed both ways; return the figures and the curves."""
    curves: dict[str, list[Curve]] = {way: [] for way in WAYS}
    for seed in range(seeds):
        for way in WAYS:
            curves[way].append(curve(asyncio.run(learned(task, way, seed))))
            if kept is not None:
                kept.write_text(json.dumps(curves))
    ends = {
        way: [sum(reward for *_, reward in run[-LAST:]) / LAST for run in runs]
        for way, runs in curves.items()
    }
    pairs = zip(ends["pipeline"], ends["synchronous"], strict=True)
    apart = clustered({str(seed): [one - other] for seed, (one, other) in enumerate(pairs)})
    figures = {f"reward_{way}": sum(values) / len(values) for way, values in ends.items()}
    figures["first_reward"] = sum(r[0][2] for r in curves["synchronous"]) / seeds
    figures |= {"apart": apart.mean, "apart_low": apart.low, "apart_high": apart.high}
    until = {way: sum(_attempts_to_goal(run) for run in runs) for way, runs in curves.items()}
    figures["attempts_to_goal"] = until["pipeline"] / until["synchronous"]
    took = {way: sum(run[-1][0] for run in runs) for way, runs in curves.items()}
    figures["learning_over_synchronous"] = took["synchronous"] / took["pipeline"]
    return figures, curves


def _attempts_to_goal(run: Curve) -> float:
    return next((attempts for _, attempts, reward in run if reward >= GOAL), run[-1][1])


def draw_figure(curves: dict[str, list[Curve]], file: Path) -> None:
    import matplotlib.pyplot as plt

    colors = {"synchronous": "#888888", "pipeline": "#1f77b4"}
    figure, (over_time, over_attempts) = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    for way, runs in curves.items():
        for number, run in enumerate(runs):
            seconds, attempts, rewards = zip(*run, strict=True)
            label = way if number == 0 else None
            over_time.plot(seconds, rewards, color=colors[way], label=label)
            over_attempts.plot(attempts, rewards, color=colors[way])
    over_time.set(xlabel="seconds", ylabel="mean reward of a step")
    over_attempts.set(xlabel="attempts")
    over_time.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dice", action="store_true", help="also learn to play with the dice")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each task and way")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the last task's curves")
    parser.add_argument("--curves", type=Path, metavar="FILE", help="keep them as JSON")
    parser.add_argument("--only-learning", action="store_true", help="leave the speed out")
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error("an interval needs two seeds")
    os.environ.setdefault("ART_PROGRESS", "lines")
    figures = {} if arguments.only_learning else speed()
    held = all(figures[name] >= TARGETS[name] for name in figures.keys() & TARGETS.keys())
    with tempfile.TemporaryDirectory() as folder:
        tasks = {"": letters(Path(folder))} | ({"dice_": dice()} if arguments.dice else {})
        for prefix, task in tasks.items():
            found, curves = learning(task, arguments.seeds, arguments.curves)
            figures |= {prefix + name: value for name, value in found.items()}
            held = held and found["apart_low"] <= 0 <= found["apart_high"]
    if arguments.figure:
        draw_figure(curves, arguments.figure)
    for name, value in figures.items():
        print(f"{name:<28}{value:10.3f}")
    rounded = {name: float(f"{value:.3g}") for name, value in figures.items()}
    print(json.dumps({"name": "pipeline", **rounded, "targets": TARGETS, "held": held}))
    sys.exit(not held)


if __name__ == "__main__":
    main()
