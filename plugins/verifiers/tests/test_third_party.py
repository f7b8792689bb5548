"""An environment package from PyPI, unmodified, trains a step of a real model.

`make environments` installs it, and starts the server of the model in an environment with torch.
"""

import os

import pytest

import art_core as art
from art_verifiers import plugin, verifiers_rollout, verifiers_scenarios

URL, KEY = os.environ.get("SERVED_URL"), os.environ.get("SERVED_KEY")
NAME = "sophistry-bench-sprint"
WEIGHTS = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not URL, reason="SERVED_URL names no server of a model")
async def test_a_package_from_pypi_trains_a_step_on_the_tokens_of_the_engine(tmp_path):
    pytest.importorskip("sophistry_bench_sprint")
    assert f"verifiers/{NAME}" in {spec.name for spec in plugin.art_environments()}
    backend = art.backend("serverless", base_url=URL, api_key=KEY)
    model = art.TrainableModel(
        name="arguer", project="p", base_model="smol", base_path=tmp_path, sinks=[]
    )
    await model.register(backend)
    given = {"passage_chars": 300, "n_items": 1, "weights": WEIGHTS}
    short, long = (
        verifiers_rollout(NAME, options={"max_tokens": n}, **given) for n in (8, 48)
    )  # one of the rewards is for a length, so that the attempts differ
    scenario, _ = verifiers_scenarios(NAME, **given)
    group = art.TrajectoryGroup(each(model, scenario) for each in (short, long) for _ in range(3))
    (group,) = await art.gather_trajectory_groups([group], pbar_desc=None)
    assert group.failures == ()
    assert len(set(group.rewards)) > 1
    for trajectory in group:
        assert trajectory.metrics["aggregate_reward"] == 0.5
        choice = trajectory.messages_and_choices[-1]
        assert len(choice.token_ids) == len(choice.logprobs.content) > 0
    result = await model.train([group], learning_rate=1e-5, mask_truncated=False)
    assert result.step == 1
    assert result.metrics["data/step_num_sequences"] == 6
    # Log-probs of other tokens would be nats apart.
    assert result.metrics["loss/engine_logprob_diff"] < 1e-3
    await model.close()
    await backend.close()
