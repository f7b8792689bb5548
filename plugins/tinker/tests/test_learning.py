"""Learning through the plugin: reward rises, and only with the right sign of the advantage."""

from __future__ import annotations

import art_core as art

STEPS = 5
TOKENS = 4


async def learn(make_model, sign, steps=STEPS):
    """Train on the share of lower-case letters; return the mean share of each step."""
    model, backend = make_model(), art.backend("tinker")
    await model.register(backend)

    async def rollout(prompt, seed):
        messages = [{"role": "user", "content": prompt}]
        completion = await model.openai_client().chat.completions.create(
            model=model.get_inference_name(), messages=messages, max_tokens=TOKENS, seed=seed
        )
        choice = completion.choices[0]
        share = sum(ord("a") <= token <= ord("z") for token in choice.token_ids) / TOKENS
        return art.Trajectory(
            messages_and_choices=[*messages, choice], reward=sign * share, metrics={"share": share}
        )

    shares = []
    for step in range(steps):
        attempted = art.TrajectoryGroup(rollout("a", 100 * step + n) for n in range(16))
        groups = await art.gather_trajectory_groups([attempted], pbar_desc=None)
        attempts = [attempt for group in groups for attempt in group]
        shares.append(sum(attempt.metrics["share"] for attempt in attempts) / len(attempts))
        await model.train(groups, learning_rate=3e-2, mask_truncated=False, save_checkpoint=False)
    await model.close()
    await backend.close()
    return shares


async def test_the_reward_rises(account, make_model):
    shares = await learn(make_model, 1.0)
    assert shares[0] < 0.2
    assert shares[-1] > 0.5


async def test_the_reward_does_not_rise_with_the_sign_flipped(account, make_model):
    assert max(await learn(make_model, -1.0, steps=4)) < 0.2
