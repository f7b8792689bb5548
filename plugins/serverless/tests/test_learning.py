"""Two processes: `art serve --backend local` trains a tiny model for a client in another one."""

from __future__ import annotations

import subprocess
import sys

import pytest

import art_core as art

STEPS = 4


async def learn(backend, base_model, runs):
    """Train on the share of lower-case letters, every draw seeded; return each step's rewards."""
    model = art.TrainableModel(
        name="tiny", project="learning", base_model=base_model, base_path=runs, sinks=[]
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
        return art.Trajectory(messages_and_choices=[*messages, choice], reward=share)

    curve = []
    for step in range(STEPS):
        groups = await art.gather_trajectory_groups(
            art.TrajectoryGroup(rollout(prompt, 1000 * step + seed) for seed in range(16))
            for prompt in "ab"
        )
        curve.append([t.reward for group in groups for t in group])
        await model.train(groups, learning_rate=1e-2, mask_truncated=False)
    await model.close()
    await backend.close()
    return curve


OPTIONS = {"device": "cpu", "dtype": "float32", "full_finetune": True, "progress": False}


@pytest.mark.slow
async def test_the_curve_through_two_processes_is_that_of_one(tmp_path, monkeypatch, connect):
    pytest.importorskip("art_local")
    from art_local.testing.tiny import save_tiny_model

    tiny = str(save_tiny_model(tmp_path / "tiny"))
    direct = await learn(art.backend("local", **OPTIONS), tiny, tmp_path / "direct")
    monkeypatch.setenv("ART_API_KEY", "a key of the tests")
    options = [f"-o{name}={value}" for name, value in OPTIONS.items()]
    command = [sys.executable, "-m", "art_core", "serve", "--backend", "local", "--port", "0"]
    place = ["--dir", str(tmp_path / "served"), "--base-model", f"tiny={tiny}"]
    with subprocess.Popen(
        [*command, *options, *place], stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            url = server.stdout.readline().split()[3].rstrip(";")
            through = await learn(connect(url), "tiny", tmp_path / "client")
        finally:
            server.terminate()
            server.wait(60)
    assert through == direct
    means = [sum(rewards) / len(rewards) for rewards in through]
    assert means[-1] > means[0] + 0.05
