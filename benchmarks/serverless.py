"""Overhead of a step through `art serve` over the same backend in the same process.

The yes / no / maybe task on SmolLM2-135M-Instruct (LoRA rank 8, fp32, 6 questions x 8 answers of at
most 8 tokens), every draw seeded: one run with `art.backend("local")`, one with
`art.backend("serverless")` against an `art serve --backend local` in a process of its own. Their
steps are taken in turns, so that both see the same machine; a step is its rollouts and its
training. Rewards must be equal, answer by answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import art_core as art

BASE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
QUESTIONS = (
    "Is the sky blue?",
    "Can fish swim?",
    "Is fire cold?",
    "Do cats bark?",
    "Is snow white?",
    "Is ice hot?",
)
REWARDS = {"maybe": 1.0, "no": 0.75, "yes": 0.5}
GROUP = 8
TARGET = 1.05
OPTIONS = {
    "dtype": "float32",
    "engine": "transformers",  # its samples depend only on the seed, not on the other requests
    "lora_rank": 8,
    "lora_alpha": 16,
    "progress": False,
}


async def rollout(model: art.TrainableModel, question: str, seed: int) -> art.Trajectory:
    """Ask once with a seed."""
    prompt = f"Answer with exactly one word: yes, no or maybe. {question}"
    messages = [{"role": "user", "content": prompt}]
    completion = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(), messages=messages, max_tokens=8, seed=seed
    )
    choice = completion.choices[0]
    ended = choice.finish_reason == "stop"
    reward = REWARDS.get((choice.message.content or "").strip(), 0.0) if ended else 0.0
    return art.Trajectory(messages_and_choices=[*messages, choice], reward=reward)


async def step(model: art.TrainableModel, number: int) -> tuple[float, list[float]]:
    """Take a step; return its seconds and its rewards."""
    started = time.perf_counter()
    groups = await art.gather_trajectory_groups(
        [
            art.TrajectoryGroup(
                rollout(model, question, 1000 * number + seed) for seed in range(GROUP)
            )
            for question in QUESTIONS
        ],
        pbar_desc=None,
    )
    await model.train(groups, learning_rate=3e-4, mask_truncated=False)
    seconds = time.perf_counter() - started
    return seconds, [t.reward for group in groups for t in group]


async def compare(url: str, key: str, runs: Path, steps: int) -> tuple[list[float], list[float]]:
    """Return seconds of the steps, direct and through the server; AssertionError when rewards
    differ.
    """
    places = {
        "direct": art.backend("local", **OPTIONS),
        "through": art.backend("serverless", base_url=url, api_key=key, progress=False),
    }
    models = {
        name: art.TrainableModel(
            name=name, project="bench", base_model=BASE_MODEL, base_path=runs, sinks=[]
        )
        for name in places
    }
    for name, model in models.items():
        await model.register(places[name])
    seconds: dict[str, list[float]] = {name: [] for name in places}
    for number in range(steps + 1):
        order: Sequence[str] = sorted(places, reverse=bool(number % 2))
        took = {name: await step(models[name], number) for name in order}
        assert took["direct"][1] == took["through"][1], f"rewards of step {number} differ"
        mean = statistics.fmean(took["direct"][1])
        print(f"step {number}: " + ", ".join(f"{n} {took[n][0]:.2f} s" for n in places), end="")
        print(f", reward {mean:.3f} in both" + ("" if number else " (warm-up, not counted)"))
        if number:
            for name in places:
                seconds[name].append(took[name][0])
    for name, model in models.items():
        await model.close()
        await places[name].close()
    return seconds["direct"], seconds["through"]


def main() -> int:
    """Print one line per step and a last line of JSON; return 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=8)
    steps = parser.parse_args().steps
    key = secrets.token_urlsafe(16)
    options = [f"-o{name}={value}" for name, value in OPTIONS.items()]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "art_core", "serve", "--backend", "local", "--port", "0"]
        server = subprocess.Popen(
            [*command, *options, "--dir", folder],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "ART_API_KEY": key},
        )
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split()[3].rstrip(";")
            direct, through = asyncio.run(compare(url, key, Path(folder), steps))
        finally:
            server.terminate()
            server.wait(60)
    ratio = statistics.median(through) / statistics.median(direct)
    print(f"through / direct: {ratio:.3f} (median of {steps} steps; at most {TARGET})")
    figures = {
        "direct_s": round(statistics.median(direct), 3),
        "through_s": round(statistics.median(through), 3),
        "ratio": round(ratio, 4),
    }
    held = ratio <= TARGET
    target = {"ratio_at_most": TARGET}
    print(json.dumps({"name": "serverless", "figures": figures, "targets": target, "held": held}))
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
