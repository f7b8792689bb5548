"""The loop of the README as a program: one question, eight steps, half a minute on two cores.

    python examples/first_loop.py

Run it again with more steps, `--steps 16`, and it continues after the last one.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

import art_core as art

PROMPT = "Answer with one word: yes, no or maybe. Is the sky blue?"


async def rollout(model: art.TrainableModel) -> art.Trajectory:
    """Ask one question; the reward is 1 if the answer is exactly one of three words."""
    ask: Any = {"role": "user", "content": PROMPT}
    reply = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(), messages=[ask], max_tokens=8
    )
    choice = reply.choices[0]
    reward = choice.message.content in ("yes", "no", "maybe")
    return art.Trajectory(messages_and_choices=[ask, choice], reward=reward)


async def main(steps: int = 8) -> None:
    """Train up to a step, from wherever the run stands."""
    async with art.TrainableModel(
        name="first-loop", project="demo", base_model="HuggingFaceTB/SmolLM2-135M-Instruct"
    ) as model:
        await model.register("local")
        for _ in range(await model.get_step(), steps):
            group = await art.TrajectoryGroup(rollout(model) for _ in range(16))
            await model.train([group], learning_rate=1e-4)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=8)
    asyncio.run(main(parser.parse_args().steps))
