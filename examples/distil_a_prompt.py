"""A model learns to follow an instruction that it is no longer given: its own teacher has it.

    python examples/distil_a_prompt.py

No reward is needed: that of an answer, whether it is one of two words, is only measured. Watch it
rise, `loss/teacher_kl` fall and the answers become short. Typing it again resumes the run.
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
    "Is ice hot?",
    "Do fish swim?",
    "Is two more than one?",
    "Can cats fly?",
    "Is milk black?",
)
ATTEMPTS = 6
RULE = [
    {"role": "system", "content": "Answer with one word: yes or no."},
    {"role": "user", "content": "Yes or no? Is grass green?"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "Yes or no? Is snow warm?"},
    {"role": "assistant", "content": "no"},
]


def with_rule(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what the teacher sees in place of the student's messages."""
    return [*RULE, *messages]


async def rollout(model: art.TrainableModel, question: str) -> art.Trajectory:
    """Ask a question without the rule; count the words of the answer."""
    ask: Any = {"role": "user", "content": f"Yes or no? {question}"}
    reply = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(), messages=[ask], max_tokens=12
    )
    choice = reply.choices[0]
    words = (choice.message.content or "").lower().strip(".").split()
    return art.Trajectory(
        messages_and_choices=[ask, choice],
        reward=float(words in (["yes"], ["no"])),
        metrics={"words": len(words)},
    )


async def main(
    steps: int = 12, place: art.Backend | str = "local", figure: str | None = None
) -> None:
    """Train up to a step, from wherever the run stands."""
    async with art.TrainableModel(
        name="distil-a-prompt", project="demo", base_model=MODEL
    ) as model:
        await model.register(place)
        teacher = await art.teacher(model, step=0, messages=with_rule)
        for _ in range(await model.get_step(), steps):
            groups = await art.gather_trajectory_groups(
                art.TrajectoryGroup(
                    (rollout(model, question) for _ in range(ATTEMPTS)),
                    metadata={"scenario_id": question},
                )
                for question in QUESTIONS
            )
            await model.train(groups, teacher=teacher, learning_rate=5e-4, mask_truncated=False)
    art_command(["plot", str(model.run_dir), "reward/mean", *(["--out", figure] if figure else [])])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=int(os.environ.get("ART_STEPS", "12")))
    parser.add_argument("--usd-per-hour", type=float, default=0.10, help="what this machine costs")
    parser.add_argument("--figure", help="a file for the curve")
    args = parser.parse_args()
    price = {"gpu_cost_per_hour_usd": args.usd_per_hour} if args.usd_per_hour else {}
    try:
        asyncio.run(main(args.steps, art.backend("local", **price), args.figure))
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted; type it again to resume\n")
    except art.ArtError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
