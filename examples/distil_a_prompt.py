"""A model learns to follow an instruction that it is no longer given: its own teacher has it.

    python examples/distil_a_prompt.py

No reward is needed. Watch `loss/teacher_kl` fall and the answers become short.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

import art_core as art

QUESTIONS = ("Is the sky blue?", "Is ice hot?", "Do fish swim?", "Is two more than one?")
RULE = {"role": "system", "content": "Answer with one word: yes or no."}


def with_rule(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what the teacher sees in place of the student's messages."""
    return [RULE, *messages]


async def rollout(model: art.TrainableModel, question: str) -> art.Trajectory:
    """Ask a question without the rule; count the words of the answer."""
    ask: Any = {"role": "user", "content": question}
    reply = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(), messages=[ask], max_tokens=24
    )
    choice = reply.choices[0]
    words = len((choice.message.content or "").split())
    return art.Trajectory(messages_and_choices=[ask, choice], metrics={"words": words})


async def main(steps: int = 12) -> None:
    """Train up to a step, from wherever the run stands."""
    async with art.TrainableModel(
        name="distil-a-prompt", project="demo", base_model="HuggingFaceTB/SmolLM2-135M-Instruct"
    ) as model:
        await model.register("local")
        teacher = await art.teacher(model, step=0, messages=with_rule)
        for _ in range(await model.get_step(), steps):
            groups = await art.gather_trajectory_groups(
                art.TrajectoryGroup(rollout(model, question) for _ in range(4))
                for question in QUESTIONS
            )
            await model.train(groups, teacher=teacher, learning_rate=5e-4, mask_truncated=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    asyncio.run(main(parser.parse_args().steps))
