"""ART's published client (openpipe-art 0.5.18) trains on `art serve`; `make client` installs it."""

from __future__ import annotations

import os
import subprocess

import pytest

from art_core.testing.echo import EchoBackend

KEY = "a key of the tests"
PYTHON = os.environ.get("ART_PUBLISHED_CLIENT", "")
PROGRAM = """
import asyncio, sys
import art
from art.serverless.backend import ServerlessBackend

async def attempt(model, question, reward):
    trajectory = art.Trajectory(
        messages_and_choices=[{"role": "user", "content": question}], reward=reward
    )
    client, name = model.openai_client(), model.get_inference_name()
    for _ in range(2):
        completion = await client.chat.completions.create(
            model=name, messages=trajectory.messages(), max_tokens=16
        )
        trajectory.messages_and_choices.append(completion.choices[0])
        trajectory.messages_and_choices.append({"role": "user", "content": "go on"})
    return trajectory

async def main(url, key, runs):
    backend = ServerlessBackend(api_key=key, base_url=url)
    model = art.TrainableModel(
        name="guest", project="riddles", base_model="base", base_path=runs, report_metrics=[]
    )
    await model.register(backend)
    for _ in range(2):
        groups = await art.gather_trajectory_groups(
            art.TrajectoryGroup(attempt(model, q, float(n)) for n in range(2)) for q in ("a", "b")
        )
        result = await backend.train(model, groups)
        print("trained", result.step, flush=True)
    forged = groups[0].model_copy(deep=True)
    for trajectory in forged.trajectories:
        trajectory.messages_and_choices[1].message.content += "!"
    try:
        await backend.train(model, [forged])
    except RuntimeError as error:
        print(error, flush=True)
    await backend._client.models.log(
        model_id=model.id, trajectory_groups=groups, split="val"
    )
    await backend._client.models.delete(model_id=model.id)
    print("deleted", flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON, reason="ART_PUBLISHED_CLIENT names no Python with openpipe-art")
def test_the_published_client_trains_and_reads_why_a_forged_answer_does_not(serving, tmp_path):
    server = serving(EchoBackend(gpu_cost_per_hour_usd=0.0))
    done = subprocess.run(
        [PYTHON, "-W", "ignore", "-c", PROGRAM, server.url, KEY, str(tmp_path)],
        env=os.environ | {"WANDB_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    printed = done.stdout.splitlines()
    assert [line for line in printed if line.startswith(("trained", "deleted"))] == [
        "trained 1",
        "trained 2",
        "deleted",
    ], done.stderr[-2000:]
    assert "is not an answer of this model that this server sampled" in done.stdout
