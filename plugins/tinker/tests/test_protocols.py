"""Agents of other protocols train at Tinker as those of chat completions do."""

from __future__ import annotations

import httpx2
import pytest

import art_core as art

BODIES = {
    "/responses": {"input": "hi", "max_output_tokens": 4},
    "/messages": {"max_tokens": 4, "messages": [{"role": "user", "content": "hi"}]},
    "/completions": {"prompt": "hi", "max_tokens": 4},
}


@pytest.fixture
async def model(account, make_model):
    backend, model = art.backend("tinker", step_timeout_s=30.0), make_model()
    await model.register(backend)
    yield model
    await model.close()
    await backend.close()


@pytest.mark.parametrize("path", BODIES)
async def test_recorded_answers_are_trained(model, path):

    async def rollout(reward):
        trajectory = art.Trajectory(reward=reward)
        with model.recording(trajectory) as endpoint:
            headers = {"x-api-key": endpoint.api_key}
            async with httpx2.AsyncClient(base_url=endpoint.base_url, headers=headers) as http:
                body = {"model": endpoint.model_name, **BODIES[path]}
                answer = await http.post(path, json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        assert trajectory.messages_and_choices[-1].token_ids
        return trajectory

    attempts = art.TrajectoryGroup(rollout(reward) for reward in (0.0, 1.0))
    groups = await art.gather_trajectory_groups([attempts], pbar_desc=None, max_exceptions=0)
    result = await model.train(groups, mask_truncated=False)
    assert (result.step, result.metrics["data/step_num_sequences"]) == (1, 2)
