"""Distillation, through the public API: an untrained twin comes near its teacher."""

from __future__ import annotations

import art_core as art


async def gathered(model, step, *, reward):
    """Answers to two prompts, every draw seeded, worth their share of lower-case letters or 0."""
    client = model.openai_client()

    async def rollout(prompt, seed):
        messages = [{"role": "user", "content": prompt}]
        completion = await client.chat.completions.create(
            model=model.get_inference_name(), messages=messages, max_tokens=8, seed=seed
        )
        choice = completion.choices[0]
        share = sum(ord("a") <= token <= ord("z") for token in choice.token_ids) / 8
        return art.Trajectory(
            messages_and_choices=[*messages, choice],
            reward=reward * share,
            metrics={"share": share},
        )

    return await art.gather_trajectory_groups(
        (
            art.TrajectoryGroup(rollout(prompt, 1000 * step + seed) for seed in range(16))
            for prompt in "ab"
        ),
        pbar_desc=None,
    )


def share(groups):
    return sum(t.metrics["share"] for group in groups for t in group) / 32


async def test_the_kl_to_the_teacher_falls_and_what_it_learned_comes_over(tiny_directory, tmp_path):
    backend = art.backend(
        "local", device="cpu", dtype="float32", full_finetune=True, progress=False
    )
    trained, twin = (
        art.TrainableModel(
            name=name, project="p", base_model=str(tiny_directory), base_path=tmp_path, sinks=[]
        )
        for name in ("trained", "twin")
    )
    options = {"mask_truncated": False, "save_checkpoint": False}
    for model in (trained, twin):
        await model.register(backend)
    for step in range(5):
        groups = await gathered(trained, step, reward=1.0)
        await trained.train(groups, learning_rate=1e-2, **options)
    teacher = await art.teacher(twin, trained)
    curve, shares = [], []
    for step in range(11):
        groups = await gathered(twin, step, reward=0.0)
        shares.append(share(groups))
        result = await twin.train(groups, teacher=teacher, learning_rate=3e-3, **options)
        curve.append(result.metrics["loss/teacher_kl"])
    print("KL to the teacher:", [round(kl, 3) for kl in curve])
    assert sum(curve[-3:]) < 0.6 * sum(curve[:3])
    assert sum(shares[-3:]) > 2 * sum(shares[:3])
    for model in (trained, twin):
        await model.close()
    await backend.close()
