"""A run keeps its optimizer and its place in a schedule when another process goes on with it."""

from __future__ import annotations

import pytest
import torch

import art_core as art

SCHEDULE = art.Schedule(1e-3, "linear", total_steps=4, warmup_steps=2)


async def opened(directory, runs):
    model = art.TrainableModel(
        name="muon", project="p", base_model=str(directory), base_path=runs, sinks=[]
    )
    backend = art.backend(
        "local", device="cpu", dtype="float32", full_finetune=True, progress=False
    )
    await model.register(backend)
    return model, backend


async def step(model, **options):
    async def rollout(seed):
        messages = [{"role": "user", "content": "a"}]
        completion = await model.openai_client().chat.completions.create(
            model=model.get_inference_name(), messages=messages, max_tokens=4, seed=seed
        )
        return art.Trajectory(
            messages_and_choices=[*messages, completion.choices[0]], reward=float(seed % 2)
        )

    groups = await art.gather_trajectory_groups(
        [art.TrajectoryGroup(rollout(seed) for seed in range(4))], pbar_desc=None
    )
    options = {"learning_rate": SCHEDULE, "optimizer": "muon", **options}
    await model.train(groups, mask_truncated=False, weight_decay=0.1, **options)
    return model.run.history.last.metrics["loss/learning_rate"]


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon since 2.9")
async def test_the_optimizer_and_the_schedule_go_on(tiny_directory, tmp_path):
    model, backend = await opened(tiny_directory, tmp_path)
    rates = [await step(model), await step(model)]
    await model.close()
    await backend.close()

    model, backend = await opened(tiny_directory, tmp_path)
    with pytest.raises(art.ConfigError, match="by optimizer='muon', and this one asks for 'adamw'"):
        await step(model, optimizer="adamw")
    assert await backend.step(model) == 2
    rates.append(await step(model))
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3])
    await model.close()
    await backend.close()
