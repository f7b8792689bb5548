"""Teach a small model to answer "maybe": GRPO on six easy questions, a few minutes on a laptop.

    python examples/yes_no_maybe.py                  # 12 steps on this machine
    python examples/yes_no_maybe.py --steps 20 --backend local

Typing it again resumes the run; another --name starts afresh.
"""

from __future__ import annotations

import argparse
import asyncio
import os

import art_core as art

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


async def rollout(model: art.TrainableModel, question: str) -> art.Trajectory:
    """Ask once; the reward is for the exact word, and nothing but the word."""
    prompt = f"Answer with exactly one word: yes, no or maybe. {question}"
    messages = [{"role": "user", "content": prompt}]
    completion = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(), messages=messages, max_tokens=8
    )
    choice = completion.choices[0]
    ended = choice.finish_reason == "stop"
    reward = REWARDS.get(choice.message.content.strip(), 0.0) if ended else 0.0
    return art.Trajectory(
        messages_and_choices=[*messages, choice], reward=reward, metrics={"invalid": reward == 0}
    )


async def main(backend: str, steps: int, name: str) -> None:
    """Train for `steps` steps from wherever the run stands."""
    options = {"lora_rank": 8, "lora_alpha": 16} if backend == "local" else {}
    place = art.backend(backend, **options)
    async with art.TrainableModel(name=name, project="yes-no-maybe", base_model=MODEL) as model:
        try:
            await model.register(place)
            for _ in range(await model.get_step(), steps):
                groups = await art.gather_trajectory_groups(
                    art.TrajectoryGroup(rollout(model, question) for _ in range(8))
                    for question in QUESTIONS
                )
                # an answer that runs into the token limit is wrong, not unfinished: it must teach
                await model.train(groups, learning_rate=3e-4, mask_truncated=False)
        finally:
            await place.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default=os.environ.get("ART_BACKEND", "local"))
    parser.add_argument("--steps", type=int, default=int(os.environ.get("ART_STEPS", "12")))
    parser.add_argument("--name", default="smol-001")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.backend, arguments.steps, arguments.name))
