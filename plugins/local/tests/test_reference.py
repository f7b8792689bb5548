"""KL to a reference through the backend: the base model, or a step's checkpoint."""

from __future__ import annotations

import json

import pytest

import art_core as art

OPTIONS = {"device": "cpu", "dtype": "float32", "lora_rank": 4, "lora_alpha": 8, "progress": False}
LEARN = {"learning_rate": 0.02, "loss_fn": "importance_sampling"}


@pytest.fixture(params=[False, True], ids=["LoRA", "whole"])
async def trained(request, tiny_directory, tmp_path):
    """A model and its backend."""
    model = art.TrainableModel(
        name="tiny",
        project="tests",
        base_model=str(tiny_directory),
        base_path=tmp_path / "runs",
        plugins=art.Plugins.discover(),
        sinks=[],
    )
    backend = art.backend("local", **OPTIONS, full_finetune=request.param)
    await model.register(backend)
    yield model, backend
    await backend.close()
    await model.close()


def groups_of(sequences):
    def attempt(s):
        choice = {
            "message": {"role": "assistant", "content": ""},
            "finish_reason": "stop",
            "prompt_token_ids": s.token_ids[:4],
            "token_ids": s.token_ids[4:],
            "logprobs": {"content": [{"logprob": lp} for lp in s.logprobs[4:]]},
        }
        return art.Trajectory(messages_and_choices=[choice], reward=s.advantage)

    return [art.TrajectoryGroup([attempt(s) for s in sequences])]


async def test_the_reference_is_the_base_model_or_a_step(trained, sequences):
    model, backend = trained
    groups = groups_of(sequences)

    async def kl(**reference):
        result = await backend.train(model, groups, **LEARN, kl_penalty_coef=1e-9, **reference)
        return result.metrics["loss/kl_div"]

    # the old log-probs are the same at each step, so only the reference moves the KL
    first = await kl()
    assert await kl() == pytest.approx(first, abs=1e-5)
    assert await kl(kl_penalty_reference_step=0) == pytest.approx(first, abs=1e-5)
    of_step_one = await kl(kl_penalty_reference_step=1)
    assert of_step_one != pytest.approx(first, abs=1e-3)
    assert await kl(kl_penalty_reference_step=1) == pytest.approx(of_step_one, abs=1e-5)
    plain = await backend.train(model, groups, **LEARN)
    assert "loss/kl_div" not in plain.metrics


async def test_the_reference_of_the_last_step_is_not_deleted(trained, sequences):
    model, backend = trained
    groups = groups_of(sequences)
    for options in ({}, {}, {"kl_penalty_coef": 0.1, "kl_penalty_reference_step": 1}):
        result = await backend.train(model, groups, **LEARN, **options)
    assert await backend.delete_checkpoints(model, ()) == [2]
    assert json.loads((result.checkpoint / "manifest.json").read_text())["reference_step"] == 1
    await backend.train(model, groups, **LEARN)
    assert await backend.delete_checkpoints(model, ()) == [1, 3]


async def test_a_step_without_a_checkpoint_is_no_reference(trained, sequences):
    model, backend = trained
    groups = groups_of(sequences)
    await backend.train(model, groups, **LEARN)
    told = "kl_penalty_reference_step is 7, which has no checkpoint; there are: 1"
    with pytest.raises(art.ConfigError, match=told):
        await backend.train(model, groups, kl_penalty_coef=0.1, kl_penalty_reference_step=7)
    assert await backend.step(model) == 1


async def test_a_loss_of_a_plugin_is_taken_by_name(trained, sequences):
    model, backend = trained

    class Gentle:
        @art.hookimpl
        def art_losses(self):
            def create():
                return lambda tokens: -tokens.advantages_R * tokens.logprobs_R

            return [art.LossSpec(name="reinforce", create=create)]

    model.plugins.register(Gentle(), "gentle for one test")
    result = await backend.train(model, groups_of(sequences), loss_fn="reinforce")
    assert result.metrics["data/step_num_gradient_steps"] == 1.0
    with pytest.raises(art.ConfigError, match="Did you mean 'reinforce'"):
        await backend.train(model, groups_of(sequences), loss_fn="reinforced")
