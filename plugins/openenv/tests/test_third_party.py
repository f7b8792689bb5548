"""OpenEnv's example, unmodified, trains a step of a real model.

`make environments` starts the server of the model in an environment with torch.
"""

import os

import pytest

import art_core as art
from art_openenv import OpenEnvEnvironment, to_training_trace

URL, KEY = os.environ.get("SERVED_URL"), os.environ.get("SERVED_KEY")


@pytest.mark.slow
@pytest.mark.skipif(not URL, reason="SERVED_URL names no server of a model")
async def test_the_example_trains_a_step_on_the_tokens_of_the_engine(echo_app, served, tmp_path):
    backend = art.backend("serverless", base_url=URL, api_key=KEY)
    model = art.TrainableModel(
        name="echoer", project="p", base_model="tiny", base_path=tmp_path, sinks=[]
    )
    await model.register(backend)
    url = served(echo_app)
    group = art.TrajectoryGroup(
        art.rollout_of(lambda: OpenEnvEnvironment(url, max_turns=1), options={"max_tokens": n})(
            model, {"id": "0"}
        )
        for n in (2, 4, 8, 16)
    )
    (group,) = await art.gather_trajectory_groups([group], pbar_desc=None, max_concurrent=1)
    assert group.failures == ()
    for trajectory in group:
        said = trajectory.messages()[1]["content"]
        assert trajectory.reward == pytest.approx(min(0.1 * len(said), 1.0))
        (turn,) = to_training_trace(trajectory).turns
        # A token is a byte; ids from 256 on are special.
        sampled = bytes(i for i in turn.completion_token_ids if i < 256)
        assert sampled.decode(errors="replace").startswith(said)
    result = await model.train([group], learning_rate=1e-4, mask_truncated=False)
    assert (result.step, result.metrics["data/step_num_sequences"]) == (1, 4)
    # Log-probs of other tokens would be nats apart.
    assert result.metrics["loss/engine_logprob_diff"] < 1e-3
    await model.close()
    await backend.close()
