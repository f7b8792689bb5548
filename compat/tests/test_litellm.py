"""Answers that litellm got are trained with their token ids."""

from __future__ import annotations

import pytest

import art
from art.utils.litellm import convert_litellm_choice_to_openai
from art_core.testing.echo import EchoBackend

ASKED = {"role": "user", "content": "yes"}


class EchoesOfArt(art.LocalBackend):
    def of(self, model):
        return self._made.setdefault("echo", EchoBackend())


@pytest.fixture
async def model(tmp_path):
    async with EchoesOfArt(path=str(tmp_path)) as backend:
        made = art.TrainableModel(name="one", project="demo", base_model="echo", report_metrics=[])
        await made.register(backend)
        yield made
        await made.close()


def rollouts(ask):
    async def rollout(reward: float) -> art.Trajectory:
        trajectory = art.Trajectory(messages_and_choices=[ASKED], reward=reward)
        for _ in range(2):
            choice = await ask(trajectory.messages())
            trajectory.messages_and_choices += [choice, {"role": "user", "content": "go on"}]
        return trajectory

    return art.gather_trajectory_groups(
        [art.TrajectoryGroup(rollout(n) for n in range(4))], pbar_desc=None
    )


async def check(model: art.TrainableModel, ask) -> None:
    for step in (1, 2):
        groups = await rollouts(ask)
        result = await model.train(groups)
        assert result.step == step
        assert result.metrics["data/step_trainer_tokens"] > 0
        choices = groups[0].trajectories[0].messages_and_choices[1::2]
        assert all(choice.prompt_token_ids for choice in choices)


async def test_plain_choices_of_the_recorded_endpoint_are_trained(model):
    openai = pytest.importorskip("openai")
    params = model.litellm_completion_params()
    async with openai.AsyncOpenAI(base_url=params["base_url"], api_key=params["api_key"]) as client:

        async def ask(messages):
            name = params["model"].removeprefix("hosted_vllm/")
            completion = await client.chat.completions.create(model=name, messages=messages)
            plain = completion.choices[0].model_dump(include={"finish_reason", "index", "message"})
            return type(completion.choices[0]).model_validate({**plain, "logprobs": None})

        await check(model, ask)


@pytest.mark.judges
@pytest.mark.filterwarnings("ignore")  # of litellm's own modules
@pytest.mark.timeout(600)
async def test_choices_of_litellm_are_trained(model, monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm = pytest.importorskip("litellm", reason="needs litellm")

    async def ask(messages):
        answer = await litellm.acompletion(**model.litellm_completion_params(), messages=messages)
        return convert_litellm_choice_to_openai(answer.choices[0])

    await check(model, ask)
