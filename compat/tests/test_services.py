"""ART's backends for services, at a real `art serve` and at the service of Tinker's tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

import art
from art.tinker import TinkerBackend
from art.tinker_native import TinkerNativeBackend

KEY = "a key of the tests"


async def rollout(model: art.Model, reward: float) -> art.Trajectory:
    asked = [{"role": "user", "content": "yes or no?"}]
    completion = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(), messages=asked, max_tokens=4
    )
    return art.Trajectory(messages_and_choices=[*asked, completion.choices[0]], reward=reward)


async def gathered(model: art.Model) -> list[art.TrajectoryGroup]:
    group = art.TrajectoryGroup(rollout(model, float(n)) for n in range(4))
    return await art.gather_trajectory_groups([group], pbar_desc=None)


@pytest.mark.torch
@pytest.mark.parametrize("kind", [TinkerBackend, TinkerNativeBackend])
async def test_a_step_is_trained_at_tinker(kind, taught_directory, tmp_path, monkeypatch):
    pytest.importorskip("tinker")
    from art_tinker.testing.fake import FakeTinker

    account = FakeTinker(taught_directory)
    monkeypatch.setattr("tinker.ServiceClient", account.service)
    monkeypatch.setattr("tinker.RestClient", account.rest, raising=False)
    rank = {"renderer_name": "x", "training_client_args": {"rank": 2}}
    async with kind(tinker_api_key="tml-a-key", path=str(tmp_path)) as backend:
        model = art.TrainableModel(
            name="one",
            project="demo",
            base_model="tiny/base",
            report_metrics=[],
            _internal_config={"tinker_args": rank},
        )
        await model.register(backend)
        groups = await gathered(model)
        result = await backend.train(model, groups, learning_rate=1e-3)
        row = await model.log(groups, split="train", metrics=result.metrics, step=result.step)
        assert (result.step, row.metrics["reward/mean"]) == (1, 1.5)
        assert (await model.train(await gathered(model))).step == 2
        await model.close()


@pytest.fixture
def service(tmp_path, taught_directory):
    """A real `art serve`; gives its URL."""
    pytest.importorskip("art_serverless")
    command = [
        sys.executable, "-m", "art_core", "serve", "--backend", "local", "--port", "0",
        "--base-model", f"tiny/base={taught_directory}",
    ]  # fmt: skip
    env = {**os.environ, "ART_API_KEY": KEY, "ART_DIR": str(tmp_path / "served")}
    env["PYTHONUNBUFFERED"] = "1"
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, env=env, text=True, **both) as server:
        assert server.stdout
        line = server.stdout.readline()
        assert line.startswith("serving 'local' at "), line + server.stdout.read()
        yield re.findall(r"http://[^ ;]+", line)[0]
        server.terminate()
        server.wait(60)


@pytest.mark.torch
async def test_a_step_is_trained_at_a_service(service, tmp_path):
    async with art.ServerlessBackend(api_key=KEY, base_url=service) as backend:
        model = art.TrainableModel(
            name="one",
            project="demo",
            base_model="tiny/base",
            base_path=tmp_path,
            report_metrics=[],
        )
        await model.register(backend)
        result = await backend.train(model, await gathered(model), learning_rate=1e-3)
        assert isinstance(result, art.ServerlessTrainResult)
        assert (result.step, await model.get_step()) == (1, 1)
        assert result.metrics["loss/grad_norm"] > 0
        await model.close()
