"""Teach a small model to answer in one word: GRPO on six easy questions, a few minutes on a laptop.

    python examples/yes_no_maybe.py                  # 12 steps on this machine
    python examples/yes_no_maybe.py --steps 20 --backend local
    python examples/yes_no_maybe.py --engine vllm    # after `art engines install vllm`
    python examples/yes_no_maybe.py --backend unsloth --name smol-002
    python examples/yes_no_maybe.py --backend tinker --base-model Qwen/Qwen3-4B-Instruct-2507

Typing it again resumes the run; another --name starts afresh.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from typing import Any

import art_core as art
from art_core.cli.main import main as art_command

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
QUESTIONS = (
    "Is the sky blue?",
    "Can fish swim?",
    "Is fire cold?",
    "Do cats bark?",
    "Is snow white?",
    "Is ice hot?",
)
REWARDS = {"maybe": 1.0, "no": 0.75, "yes": 0.5}


def asked(question: str) -> list[Any]:
    """Return the conversation so far."""
    prompt = f"Answer with exactly one word: yes, no or maybe. {question}"
    return [{"role": "user", "content": prompt}]


async def rollout(model: art.TrainableModel, question: str) -> art.Trajectory:
    """Ask once; the reward is for the exact word, and nothing but the word."""
    messages = asked(question)
    completion = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(), messages=messages, max_tokens=8
    )
    choice = completion.choices[0]
    ended = choice.finish_reason == "stop"
    reward = REWARDS.get((choice.message.content or "").strip(), 0.0) if ended else 0.0
    return art.Trajectory(
        messages_and_choices=[*messages, choice], reward=reward, metrics={"invalid": reward == 0}
    )


async def answers(model: art.TrainableModel, step: int) -> str:
    """Ask the weights of a step the first question, three times."""
    completion = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(step),
        messages=asked(QUESTIONS[0]),
        max_tokens=8,
        n=3,
        seed=1,
    )
    return ", ".join(repr(choice.message.content) for choice in completion.choices)


async def main(place: art.Backend, steps: int, name: str, base_model: str = MODEL) -> None:
    """Train for `steps` steps from wherever the run stands, and show what came of it."""
    project = "yes-no-maybe"
    async with art.TrainableModel(name=name, project=project, base_model=base_model) as model:
        await model.register(place)
        start = await model.get_step()
        where = os.path.relpath(model.run_dir)  # noqa: ASYNC240
        print(f"{'resuming after' if start else 'starting at'} step {start}, in {where}")
        for _ in range(start, steps):
            groups = await art.gather_trajectory_groups(
                art.TrajectoryGroup(rollout(model, question) for _ in range(8))
                for question in QUESTIONS
            )
            # an answer that runs into the token limit is wrong, not unfinished: it must teach
            await model.train(groups, learning_rate=3e-4, mask_truncated=False)
        before, after = await answers(model, 0), await answers(model, await model.get_step())
        await place.close()
    curve = f"{where}/reward.png"
    art_command(["plot", where, "reward/mean"])
    art_command(["plot", where, "reward/mean", "--out", curve])
    print(f"{QUESTIONS[0]}\n  before: {before}\n  after:  {after}")
    print(f"the run: {where}   the curve: {curve}   more: .venv/bin/art show {name}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default=os.environ.get("ART_BACKEND", "local"))
    parser.add_argument("--base-model", default=MODEL, help="what it starts from")
    parser.add_argument("--engine", default="auto", help="what samples on this machine")
    parser.add_argument("--steps", type=int, default=int(os.environ.get("ART_STEPS", "12")))
    parser.add_argument("--name", default="smol-001", help="the run's name; a known one resumes")
    parser.add_argument("--usd-per-hour", type=float, default=0.10, help="what this machine costs")
    args = parser.parse_args()
    options = {
        "engine": args.engine,
        "lora_rank": 8,
        "lora_alpha": 16,
        "gpu_cost_per_hour_usd": args.usd_per_hour,
    }
    on_this_machine = args.backend in ("local", "ray", "unsloth")
    try:
        backend = art.backend(args.backend, **(options if on_this_machine else {}))
        asyncio.run(main(backend, args.steps, args.name, args.base_model))
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted; type it again to resume\n")
    except art.ArtError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
