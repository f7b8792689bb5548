"""Pipelines whose queue is served to workers in other processes."""

from __future__ import annotations

import asyncio
import importlib
import os
import socket
import sys

import pytest
from pipelined import ask

import art_core as art

SMALL = {"attempts": 2, "min_batch_size": 2, "max_batch_size": 2, "progress": False}
KEY = "0123456789abcdef"
# An attempt of the pipeline's own process waits for one of the worker.
AGENT = """
import asyncio
import os
from pathlib import Path

import art_core as art

UP = Path(__file__).with_name("up")


async def rollout(model, scenario):
    far = "FAR" in os.environ
    trajectory = art.Trajectory(messages_and_choices=[{"role": "user", "content": f"{scenario}"}])
    completion = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(), messages=trajectory.messages()
    )
    trajectory.messages_and_choices.append(completion.choices[0])
    trajectory.reward = float(scenario)
    trajectory.metrics["far"] = far
    if far:
        UP.touch()
    while not UP.exists():
        await asyncio.sleep(0.01)
    return trajectory
"""


@pytest.fixture
def rollout(tmp_path, monkeypatch):
    (tmp_path / "far_agent.py").write_text(AGENT)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "far_agent", raising=False)
    return importlib.import_module("far_agent").rollout


@pytest.fixture
def port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


async def worker_at(port, tmp_path):
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "art_core", "worker", "far_agent:rollout",
        "--server", f"http://127.0.0.1:{port}",
        cwd=tmp_path, env=os.environ | {"ART_GATEWAY_KEY": KEY, "FAR": "1"},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize("here", [0, 1])
async def test_workers_make_attempts_beside_those_of_the_pipeline(
    model, backend, rollout, port, tmp_path, here
):
    worker = await worker_at(port, tmp_path)
    gateway = {"port": port, "api_key": KEY}
    options = {"zero_variance": "drop", "max_concurrent": here, **SMALL}
    result = await art.pipeline(model, range(12), rollout, gateway=gateway, **options)
    printed, _ = await worker.communicate()
    assert (result.step, result.groups, worker.returncode) == (6, 12, 0)
    assert sorted(int(name) for ids in backend.trained for name in ids) == list(range(12))
    run = art.open_run(model.run_dir)
    made = [t.metrics["far"] for step in range(1, 7) for g in run.groups(step) for t in g]
    assert len(made) == 24
    assert {*made} == {True} if here == 0 else {True, False}
    assert f"{sum(made)} accepted".encode() in printed


async def test_a_worker_with_another_rollout_is_refused(model, rollout, port, tmp_path):
    async def after_each(group):
        del group
        (tmp_path / "far_agent.py").write_text(AGENT + "\n")
        worker = await worker_at(port, tmp_path)
        refused.append((await worker.communicate())[1].decode())
        return

    (tmp_path / "up").touch()
    refused: list[str] = []
    gateway = {"port": port, "api_key": KEY}
    await art.pipeline(model, [1], rollout, gateway=gateway, after_each=after_each, **SMALL)
    assert "of the rollout, and the run has" in refused[0]


async def test_attempts_must_be_made_somewhere(model):
    with pytest.raises(art.ConfigError, match="no worker elsewhere can make attempts"):
        await art.pipeline(model, [1], ask, max_concurrent=0)
