"""An environment of several turns, played and trained on the local backend."""

from __future__ import annotations

import pytest

import art_core as art


class Letters(art.Environment):
    """It asks again and again, and pays for lower-case letters."""

    max_turns = 3

    async def reset(self, scenario):
        self.answers = []
        return [{"role": "user", "content": scenario["prompt"]}]

    async def respond(self, message):
        self.answers.append(message["content"] or "")
        return [{"role": "user", "content": "More."}]

    async def score(self, trajectory):
        text = "".join(self.answers)
        return sum("a" <= letter <= "z" for letter in text) / (1 + len(text))


@pytest.mark.torch
async def test_an_environment_is_trained_and_ends_when_the_context_is_full(
    tiny_directory, tmp_path
):
    backend = art.backend("local", device="cpu", progress=False)
    model = art.TrainableModel(
        name="m", project="p", base_model=str(tiny_directory), base_path=tmp_path, sinks=[]
    )
    await model.register(backend)
    scenario = {"id": "a", "prompt": "Say something."}
    rollout = art.rollout_of(Letters, options={"max_tokens": 8})
    (group,) = await art.gather_trajectory_groups(
        [art.TrajectoryGroup(rollout(model, scenario) for _ in range(4))], pbar_desc=None
    )
    assert [t.metrics["turns"] for t in group] == [3] * 4
    await model.train([group], mask_truncated=False)
    assert model.run.history.last.metrics["data/step_num_gradient_steps"] == 1
    endless = art.rollout_of(Letters, max_turns=1000, options={"max_tokens": 32})
    full = await endless(model, scenario)
    assert 1 < full.metrics["turns"] < 100
    assert full.metrics["unfinished"] == 1.0
    await model.close()
    await backend.close()
