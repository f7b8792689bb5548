"""Learning, through the public API: reward rises, and only with the right sign of the advantage."""

from __future__ import annotations

import art_core as art

STEPS = 20


async def learn(directory, runs, sign, steps=STEPS):
    """Train on the share of lower-case letters, every draw seeded; return the true mean reward of
    each step.
    """
    model = art.TrainableModel(
        name="tiny", project="learning", base_model=str(directory), base_path=runs, sinks=[]
    )
    backend = art.backend(
        "local", device="cpu", dtype="float32", full_finetune=True, progress=False
    )
    await model.register(backend)
    client = model.openai_client()

    async def rollout(prompt, seed):
        messages = [{"role": "user", "content": prompt}]
        completion = await client.chat.completions.create(
            model=model.get_inference_name(), messages=messages, max_tokens=8, seed=seed
        )
        choice = completion.choices[0]
        share = sum(ord("a") <= token <= ord("z") for token in choice.token_ids) / 8
        return art.Trajectory(
            messages_and_choices=[*messages, choice], reward=sign * share, metrics={"share": share}
        )

    rewards = []
    for step in range(steps):
        groups = await art.gather_trajectory_groups(
            art.TrajectoryGroup(rollout(prompt, 1000 * step + seed) for seed in range(16))
            for prompt in "ab"
        )
        attempts = [t for group in groups for t in group]
        rewards.append(sum(t.metrics["share"] for t in attempts) / len(attempts))
        await model.train(groups, learning_rate=1e-2, mask_truncated=False, save_checkpoint=False)
        if rewards[-1] > 0.8:
            break
    await client.close()
    await backend.close()
    await model.close()
    return rewards


async def test_the_reward_rises_above_four_fifths(tiny_directory, tmp_path):
    rewards = await learn(tiny_directory, tmp_path, sign=1.0)
    assert rewards[0] < 0.2
    assert rewards[-1] > 0.8


async def test_the_reward_does_not_rise_with_the_sign_of_the_advantage_flipped(
    tiny_directory, tmp_path
):
    rewards = await learn(tiny_directory, tmp_path, sign=-1.0, steps=9)
    assert max(rewards) < 0.2
