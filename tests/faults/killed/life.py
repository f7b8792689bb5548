"""The run that is killed: steps on rewards, supervised fine-tuning and evaluations, resumed as any
program resumes.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

from points import Points

import art_core as art
from art_core.evaluation.evaluate import evaluate

GROUPS, ATTEMPTS = 2, 3
LESSONS, EPOCHS, BATCH = 8, 2, 4
TAUGHT = 1 + EPOCHS * LESSONS // BATCH
LAST = TAUGHT + 1
"""Step 1 and the last are trained on rewards; those between, up to TAUGHT, on lessons."""


async def life(directory: Path, tiny: Path, points: Points, *, exact: bool) -> None:
    """Begin or resume the run, and train it to its end."""
    random.seed()
    backend = art.backend(
        "local", device="cpu", dtype="float32", lora_rank=4, progress=False,
        engine="transformers", deterministic=exact,
    )  # fmt: skip
    model = art.TrainableModel(
        name="m", project="p", base_model=str(tiny), base_path=directory, sinks=[],
        keep_checkpoints=art.keep_recent_and_top(2, 1, "val/reward"),
    )  # fmt: skip
    with points.phase("loading", 0):
        await model.register(backend)
    if await model.get_step() < 1:
        await on_rewards(model, points)
    with points.phase("SFT", 1):
        await model.train_sft(
            lessons(), learning_rate=1e-2, batch_size=BATCH, epochs=EPOCHS, checkpoint_every=2
        )
    if await model.get_step() < LAST:
        await evaluated(model, points)
        await on_rewards(model, points)
    await evaluated(model, points)
    await model.close()
    await backend.close()


async def on_rewards(model: art.TrainableModel, points: Points) -> None:
    """Train one step on rewards."""
    step = await model.get_step()
    with points.phase("rollout", step + 1):
        groups = await art.gather_trajectory_groups(
            (
                art.TrajectoryGroup(
                    attempt(model, step, ATTEMPTS * group + n) for n in range(ATTEMPTS)
                )
                for group in range(GROUPS)
            ),
            pbar_desc=None,
        )
    with points.phase("train step", step + 1):
        await model.train(groups, learning_rate=1e-2, mask_truncated=False)


async def attempt(model: Any, step: int, number: int) -> art.Trajectory:
    """Answer one question. Other requests share its batch each time."""
    await asyncio.sleep(random.random() * 0.01)
    model.metrics_builder("train").add_cost("train/judge", 0.25)
    return await answered(model, "yes" * (number // ATTEMPTS + 1), 1000 * step + number, number % 5)


async def answered(model: Any, word: str, seed: int, longer: int) -> art.Trajectory:
    """Ask for a word; the reward depends on each letter of the answer."""
    question = [{"role": "user", "content": f"say {word}"}]
    answer = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(), messages=question, max_tokens=5 + longer, seed=seed
    )
    text = answer.choices[0].message.content
    return art.Trajectory(
        messages_and_choices=[*question, answer.choices[0]], reward=sum(map(ord, text)) % 7 / 7
    )


async def evaluated(model: art.TrainableModel, points: Points) -> None:
    """Evaluate the newest weights, unless the log has the row."""
    step = await model.get_step()
    rows = art.open_run(model.run_dir).rows()
    if any((row.split, row.step) == ("val", step) for row in rows):
        return
    with points.phase("evaluation", step):
        await evaluate(model, [str(n) for n in range(4)], scenario, progress=None)


async def scenario(model: Any, number: str) -> art.Trajectory:
    """Answer the question of one scenario."""
    await asyncio.sleep(random.random() * 0.01)
    return await answered(model, f"no {number}", int(number), int(number))


def lessons() -> list[art.Trajectory]:
    """Return the conversations of the fine-tuning."""
    return [
        art.Trajectory(
            messages_and_choices=[
                {"role": "user", "content": f"say {number}"},
                {"role": "assistant", "content": "yes" * (1 + number % 3)},
            ]
        )
        for number in range(LESSONS)
    ]
