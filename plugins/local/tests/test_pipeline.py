"""Rollouts of a real model while its weights are trained."""

from __future__ import annotations

import pytest

import art_core as art

pytestmark = pytest.mark.torch

OPTIONS = {
    "attempts": 4,
    "min_batch_size": 2,
    "max_batch_size": 2,
    "max_steps_off_policy": 2,
    "zero_variance": "drop",
    "eval_scenarios": ["z"],
    "eval_every": 2,
    "progress": False,
    "mask_truncated": False,
    "learning_rate": 1e-3,
}


async def rollout(model, scenario):
    """Two turns of a few tokens; the reward is the share of lower-case letters."""
    trajectory = art.Trajectory(messages_and_choices=[])
    shares = []
    for _ in range(2):
        trajectory.messages_and_choices.append({"role": "user", "content": scenario})
        completion = await model.openai_client().chat.completions.create(
            model=model.get_inference_name(), messages=trajectory.messages(), max_tokens=6
        )
        choice = completion.choices[0]
        trajectory.messages_and_choices.append(choice)
        asked = (model.get_inference_name(), choice.policy_version)
        trajectory.metadata.setdefault("asked", []).append(asked)
        shares.append(sum(97 <= token <= 122 for token in choice.token_ids) / 6)
    trajectory.reward = sum(shares) / 2
    return trajectory


async def test_it_trains_what_older_weights_sampled_and_goes_on_later(tiny_directory, tmp_path):
    scenarios = list("abcdefgh")
    for epochs in (1, 2):  # the second process begins where the first has ended
        backend = art.backend(
            "local", device="cpu", dtype="float32", engine="transformers", progress=False
        )
        model = art.TrainableModel(
            name="m", project="p", base_model=str(tiny_directory), base_path=tmp_path, sinks=[]
        )
        await model.register(backend)
        result = await art.pipeline(model, scenarios, rollout, epochs=epochs, **OPTIONS)
        assert result.step == await model.get_step()
        await model.close()
        await backend.close()
    run = art.open_run(model.run_dir)
    rows = [row for row in run.rows(split="train") if "reward/mean" in row.metrics]
    assert sum(row.metrics["data/step_num_groups_submitted"] for row in rows) == 16
    ages = [row.metrics["offpolicy/steps_max"] for row in rows]
    assert 0 < max(ages) <= 2
    for row in rows:
        metrics = row.metrics
        if "data/staleness_max" in metrics:  # the backend's own, of the turns that teach
            assert metrics["data/staleness_max"] <= metrics["offpolicy/steps_max"]
        if metrics["offpolicy/steps_max"] == 0 and "loss/kl_k3" in metrics:
            assert metrics["loss/kl_k3"] < 1e-6  # the engine's log-probs are the trainer's
    evaluated = {row.step for row in run.rows(split="val")}
    assert {0, 2, 4, rows[-1].step} <= evaluated


async def test_an_attempt_may_keep_the_weights_that_it_began_with(tiny_directory, tmp_path):
    backend = art.backend(
        "local", device="cpu", dtype="float32", engine="transformers", progress=False
    )
    model = art.TrainableModel(
        name="m",
        project="p",
        base_model=str(tiny_directory),
        base_path=tmp_path,
        sinks=[],
        keep_checkpoints=lambda stored: [],
    )
    seen = []

    async def noting(model, scenario):
        trajectory = await rollout(model, scenario)
        seen.append(trajectory.metadata["asked"])
        return trajectory

    await model.register(backend)
    await art.pipeline(model, list("abcdefgh"), noting, swap="attempt", **OPTIONS)
    await model.close()
    await backend.close()
    assert len(seen) >= 32
    for first, second in seen:
        assert first == second == (f"m@{first[1]}", first[1])
    assert len({first[1] for first, _ in seen}) > 1
