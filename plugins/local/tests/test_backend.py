"""The local backend through the public API, on the tiny model."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import shutil
from decimal import Decimal

import attrs
import openai
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

import art_core as art
from art_local.models.placement import placement
from art_local.testing.tiny import save_tiny_model
from waiting import until_async

QUESTION = [{"role": "user", "content": "go"}]
OPTIONS = {"device": "cpu", "dtype": "float32", "lora_rank": 4, "lora_alpha": 8, "progress": False}


@pytest.fixture
def make_model(tiny_directory, tmp_path):
    def make(name="tiny", **options):
        given = {"base_model": str(tiny_directory), "base_path": tmp_path / "runs", **options}
        return art.TrainableModel(name=name, project="tests", sinks=[], **given)

    return make


@pytest.fixture
async def registered(make_model):
    """Registers models with backends, and closes both."""
    opened = []

    async def register(model=None, **options):
        model, backend = model or make_model(), art.backend("local", **{**OPTIONS, **options})
        try:
            await model.register(backend)
        except BaseException:
            await backend.close()
            await model.close()
            raise
        opened.append((model, backend))
        return model, backend

    yield register
    for model, backend in opened:
        await shut(model, backend)


async def shut(model, backend):
    await model.openai_client().close()
    await backend.close()
    await model.close()


async def ask(model, name=None, **options):
    """One completion of six tokens, the same for the same weights."""
    request = {"seed": 3, "max_tokens": 6, **options}
    return await model.openai_client().chat.completions.create(
        model=name or model.get_inference_name(), messages=QUESTION, **request
    )


async def some_groups(model, count=2):
    async def rollout(index):
        choice = (await ask(model, seed=index)).choices[0]
        return art.Trajectory(messages_and_choices=[*QUESTION, choice], reward=float(index % 2))

    return await art.gather_trajectory_groups(
        art.TrajectoryGroup(rollout(4 * g + i) for i in range(4)) for g in range(count)
    )


LEARN = {"learning_rate": 0.05, "mask_truncated": False}


def logprobs(completion):
    return [token.logprob for token in completion.choices[0].logprobs.content]


async def test_a_step_changes_the_served_weights_and_writes_a_checkpoint(registered):
    model, backend = await registered()
    before = await ask(model)
    result = await model.train(await some_groups(model), **LEARN)
    after = await ask(model)
    assert (result.step, await model.get_step()) == (1, 1)
    assert logprobs(before) != logprobs(after)
    assert (before.model, after.model) == ("tiny@0", "tiny@1")
    assert after.choices[0].policy_version == 1
    assert result.checkpoint == model.run_dir / "checkpoints" / "0001"
    assert {p.name for p in result.checkpoint.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "manifest.json",
        "optimizer.safetensors", "rng.safetensors",
    }  # fmt: skip
    assert [c.step for c in await backend.checkpoints(model)] == [1]


async def test_the_dollars_of_a_step_are_divided_by_what_became_of_its_attempts(registered):
    model, _ = await registered(gpu_cost_per_hour_usd=3600.0)
    await model.train(await some_groups(model), **LEARN)
    (row,) = art.LoggedRun(model.run_dir).rows()
    parts = {key: usd for key, usd in row.metrics.items() if key.startswith("signal/")}
    of_row = [usd for key, usd in parts.items() if "/cum/" not in key]
    assert math.fsum(of_row) == row.metrics["costs/all"] > 0
    assert parts["signal/learned"] == parts["signal/cum/learned"] > 0


async def test_trainer_and_engine_agree_on_log_probs(registered):
    model, _ = await registered()
    for _ in range(2):
        metrics = (await model.train(await some_groups(model), **LEARN)).metrics
        assert metrics["loss/importance_ratio_mean"] == pytest.approx(1.0, abs=1e-3)
        assert metrics["loss/kl_k3"] == pytest.approx(0.0, abs=1e-5)
        assert metrics["data/staleness_mean"] == metrics["data/staleness_max"] == 0


async def test_older_steps_the_base_and_the_newest_are_served_by_name(registered):
    model, _ = await registered(served_steps=1)
    answers = {0: logprobs(await ask(model))}
    for step in (1, 2, 3):
        await model.train(await some_groups(model), **LEARN)
        answers[step] = logprobs(await ask(model))
    for step, wanted in answers.items():
        assert logprobs(await ask(model, f"tiny@{step}")) == pytest.approx(wanted, abs=1e-5)
    assert logprobs(await ask(model, model.base_model)) == pytest.approx(answers[0], abs=1e-5)
    names = [m.id async for m in model.openai_client().models.list()]
    assert names == ["tiny", "tiny@3", "tiny@2", "tiny@1", "tiny@0", model.base_model]


async def test_an_unknown_name_is_answered_404_in_openais_shape(registered):
    model, _ = await registered()
    for name in ("other", "tiny@9", "tiny@x", "tiny@"):
        with pytest.raises(openai.NotFoundError, match="served: "):
            await ask(model, name)


async def test_requests_under_way_stay_on_the_weights_they_began_with(registered):
    model, backend = await registered()
    (session,) = backend._sessions.values()
    wanted = await ask(model, max_tokens=200)
    groups = await some_groups(model)
    running = asyncio.create_task(ask(model, max_tokens=200))
    await until_async(lambda: session.engine._worker._batches)
    await model.train(groups, **LEARN)
    found = await running
    assert found.choices[0].policy_version == 0
    assert logprobs(found) == pytest.approx(logprobs(wanted), abs=1e-4)


async def test_resuming_continues_weights_optimizer_and_step_exactly(
    registered, make_model, sequences, caplog
):
    caplog.set_level(logging.INFO, "art_local")
    groups = _groups_of(sequences)
    straight, backend = await registered(make_model("straight"))
    for _ in range(4):
        await backend.train(straight, groups, **LEARN)
    first, backend = await registered(make_model("stopped"))
    for _ in range(2):
        await backend.train(first, groups, **LEARN)
    await shut(first, backend)
    again, backend = await registered(make_model("stopped"))
    assert "resumed from checkpoint 2" in caplog.text
    assert await backend.step(again) == 2
    for _ in range(2):
        await backend.train(again, groups, **LEARN)
    for file in ("adapter_model.safetensors", "optimizer.safetensors", "rng.safetensors"):
        wanted = load_file(straight.run_dir / "checkpoints" / "0004" / file)
        found = load_file(again.run_dir / "checkpoints" / "0004" / file)
        assert wanted.keys() == found.keys()
        for name in wanted:
            assert (found[name].double() - wanted[name].double()).abs().max() <= 1e-6, name


def _groups_of(sequences):
    """Groups whose choices carry the given tokens: the same training step every time."""
    trajectories = [
        art.Trajectory(
            messages_and_choices=[
                {
                    "message": {"role": "assistant", "content": ""},
                    "finish_reason": "stop",
                    "prompt_token_ids": s.token_ids[:4],
                    "token_ids": s.token_ids[4:],
                    "logprobs": {"content": [{"logprob": lp} for lp in s.logprobs[4:]]},
                }
            ],
            reward=s.advantage,
        )
        for s in sequences
    ]
    return [art.TrajectoryGroup(trajectories)]


async def test_a_run_with_a_critic_resumes_where_it_was(registered, make_model, sequences):
    options = {**LEARN, "loss_fn": "ppo", "advantage_baseline": "value"}
    model, backend = await registered()
    first = await backend.train(model, _groups_of(sequences), **options)
    assert "loss/value" in first.metrics
    assert (first.checkpoint / "value_head.safetensors").exists()
    await shut(model, backend)
    again, backend = await registered(make_model())
    await backend.train(again, _groups_of(sequences), **options)
    await shut(again, backend)
    straight, backend = await registered(make_model("straight"))
    for _ in range(2):
        await backend.train(straight, _groups_of(sequences), **options)
    stored = [
        load_file(m.run_dir / "checkpoints" / "0002" / "value_head.safetensors")
        for m in (again, straight)
    ]
    assert stored[0].keys() == stored[1].keys()
    for name, tensor in stored[0].items():
        assert (tensor.double() - stored[1][name].double()).abs().max() <= 1e-6, name


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
async def test_a_checkpoint_loads_with_peft(registered, tiny_directory, sequences):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model, backend = await registered()
    result = await backend.train(model, _groups_of(sequences), **LEARN)
    base = AutoModelForCausalLM.from_pretrained(tiny_directory, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, result.checkpoint)
    completion = await ask(model)
    choice = completion.choices[0]
    ids = torch.tensor([[*choice.prompt_token_ids, *choice.token_ids]])
    with torch.no_grad():
        found = adapted(input_ids=ids).logits[0].log_softmax(-1)
    start = len(choice.prompt_token_ids)
    wanted = [float(found[start + i - 1, t]) for i, t in enumerate(choice.token_ids)]
    assert logprobs(completion) == pytest.approx(wanted, abs=1e-3)


async def test_a_checkpoint_of_all_weights_is_a_base_model_and_resumes(
    registered, make_model, sequences, tmp_path
):
    """Its experts are stacked in memory and apart in the files, as in those of the base model."""
    base = save_tiny_model(tmp_path / "base")
    config = Qwen3MoeConfig(
        vocab_size=260, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=24, eos_token_id=258, pad_token_id=256,
    )  # fmt: skip
    whole = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    whole.generation_config.eos_token_id = [258, 259]
    whole.save_pretrained(base)
    options = {"full_finetune": True, "lora_rank": 4}
    model, backend = await registered(make_model(base_model=str(base)), **options)
    checkpoint = (await backend.train(model, _groups_of(sequences), **LEARN)).checkpoint
    wanted = logprobs(await ask(model))
    await shut(model, backend)
    stored, before = (load_file(d / "model.safetensors") for d in (checkpoint, base))
    assert stored.keys() == before.keys()
    ends = json.loads((checkpoint / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [258, 259]
    again, backend = await registered(make_model(base_model=str(base)), **options)
    assert logprobs(await ask(again)) == pytest.approx(wanted, abs=1e-5)
    await shut(again, backend)
    following, _ = await registered(make_model("next", base_model=str(checkpoint)))
    assert logprobs(await ask(following)) == pytest.approx(wanted, abs=1e-4)


async def test_groups_without_spread_still_advance_the_step(registered):
    model, _ = await registered()
    choice = (await ask(model)).choices[0]
    same = [art.Trajectory(messages_and_choices=[*QUESTION, choice], reward=1.0) for _ in range(2)]
    before = logprobs(await ask(model))
    result = await model.train([art.TrajectoryGroup(same)], **LEARN)
    assert result.step == 1
    assert result.metrics["data/step_num_gradient_steps"] == 0
    assert logprobs(await ask(model)) == pytest.approx(before, abs=1e-6)
    assert result.checkpoint.is_dir()


async def test_going_back_loads_the_older_step_and_keeps_the_later_ones_aside(
    registered, make_model, sequences, caplog
):
    model, backend = await registered()
    wanted = {}
    for step in (1, 2, 3):
        await backend.train(model, _groups_of(sequences), **LEARN)
        wanted[step] = logprobs(await ask(model))
    await shut(model, backend)
    again, backend = make_model(), art.backend("local", **OPTIONS)
    with pytest.raises(art.ConfigError, match="step 7 has no checkpoint.*there are: 1, 2, 3"):
        await again.register(backend, step=7)
    await again.register(backend, step=2)
    assert logprobs(await ask(again)) == pytest.approx(wanted[2], abs=1e-5)
    names = {path.name for path in (again.run_dir / "checkpoints").iterdir()}
    assert names == {"0001", "0002", "0003.abandoned"}
    assert "checkpoint 3 is kept as 0003.abandoned" in caplog.text
    await again.register(backend, step=1)  # also one that is registered already
    assert await again.get_step() == 1
    assert logprobs(await ask(again)) == pytest.approx(wanted[1], abs=1e-5)
    await again.register(backend, step=0)
    assert (await again.get_step(), (await ask(again)).model) == (0, "tiny@0")
    await shut(again, backend)


async def test_a_step_that_a_request_uses_is_not_deleted(registered, sequences):
    model, backend = await registered()
    for _ in range(3):
        await backend.train(model, _groups_of(sequences), **LEARN)
    lease = backend._sessions.of(model).served.lease(1)
    assert await backend.delete_checkpoints(model, ()) == [2]
    del lease
    assert await backend.delete_checkpoints(model, ()) == [1]


async def test_a_fork_goes_on_from_its_parents_step(registered, make_model, sequences):
    from art_local.checkpoints.fork import Source, fork

    model, backend = await registered()
    for _ in range(2):
        await model.train(_groups_of(sequences), **LEARN)
    wanted = logprobs(await ask(model, "tiny@1"))
    await shut(model, backend)
    fork(Source.of(str(model.run_dir), None, 1), "forked")
    forked, backend = await registered(make_model("forked"))
    assert await forked.get_step() == 1
    assert logprobs(await ask(forked)) == pytest.approx(wanted, abs=1e-5)
    assert (await forked.train(_groups_of(sequences), **LEARN)).step == 2
    assert [parent["step"] for parent in art.open_run(forked.run_dir).parents()] == [1]
    await shut(forked, backend)


async def test_another_recipe_than_the_checkpoints_is_refused(registered, make_model, sequences):
    model, backend = await registered()
    await backend.train(model, _groups_of(sequences), **LEARN)
    await shut(model, backend)
    with pytest.raises(art.ConfigError, match="lora_rank=4, this run asks for 2.*accept_changes"):
        await registered(make_model(), lora_rank=2)
    with pytest.raises(art.ConfigError, match="full_finetune=False, this run asks for True"):
        await registered(make_model(), full_finetune=True, accept_changes=True)


async def test_another_rank_is_accepted_and_changes_nothing_if_it_is_higher(
    registered, make_model, sequences, caplog
):
    model, backend = await registered()
    await model.train(_groups_of(sequences), **LEARN)
    wanted = logprobs(await ask(model))
    await shut(model, backend)
    again, backend = await registered(make_model(), lora_rank=6, lora_alpha=6, accept_changes=True)
    assert "LoRA rank 4 alpha 8, continued with rank 6 alpha 6" in caplog.text
    assert logprobs(await ask(again)) == pytest.approx(wanted, abs=1e-5)
    await again.train(_groups_of(sequences), **LEARN)
    assert logprobs(await ask(again, "tiny@1")) == pytest.approx(wanted, abs=1e-5)
    await shut(again, backend)
    lower, backend = await registered(make_model(), lora_rank=2, accept_changes=True)
    assert await lower.get_step() == 2
    await shut(lower, backend)


async def test_another_loss_on_resume_is_shown_and_can_be_accepted(
    registered, make_model, sequences, caplog
):
    model, backend = await registered()
    await model.train(_groups_of(sequences), **LEARN)
    other = LEARN | {"epsilon": 0.5}
    await model.train(_groups_of(sequences), **other)  # in one process it is a choice
    await shut(model, backend)
    again, backend = await registered(make_model())
    with pytest.raises(
        art.ConfigError, match="epsilon=0.5, this step asks for 1.0.*accept_changes"
    ):
        await again.train(_groups_of(sequences), **LEARN)
    assert (await again.train(_groups_of(sequences), **other)).step == 3
    await shut(again, backend)
    again, backend = await registered(make_model(), accept_changes=True)
    assert (await again.train(_groups_of(sequences), **LEARN)).step == 4
    assert "step 3 was trained with" in caplog.text
    await shut(again, backend)


async def test_a_run_resumes_over_the_same_base_model_wherever_it_lies(
    registered, make_model, sequences, tiny_directory, tmp_path, monkeypatch
):
    model, backend = await registered()
    await backend.train(model, _groups_of(sequences), **LEARN)
    before = logprobs(await ask(model))
    await shut(model, backend)
    shutil.copytree(tiny_directory, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    for spelling in ("./moved", f"{tiny_directory}/"):
        again, backend = await registered(make_model(base_model=spelling))
        assert await again.get_step() == 1
        assert logprobs(await ask(again)) == pytest.approx(before, abs=1e-5)
        await shut(again, backend)


async def test_other_weights_in_the_directory_of_the_base_model_are_refused(
    registered, make_model, sequences, tmp_path
):
    base = save_tiny_model(tmp_path / "base")
    model, backend = await registered(make_model(base_model=str(base)))
    await backend.train(model, _groups_of(sequences), **LEARN)
    save_tiny_model(base, seed=5)
    second = make_model("second", base_model=str(base))
    with pytest.raises(art.ConfigError, match="were replaced since it was loaded"):
        await second.register(backend)
    await second.close()
    await shut(model, backend)
    with pytest.raises(art.ConfigError, match=r"trained over another base model.*put its files"):
        await registered(make_model(base_model=str(base)))


async def test_a_step_trained_over_another_base_model_is_neither_served_nor_a_reference(
    registered, sequences
):
    model, backend = await registered(served_steps=1)
    for _ in range(3):
        await backend.train(model, _groups_of(sequences), **LEARN)
    manifest = model.run_dir / "checkpoints" / "0001" / "manifest.json"
    stored = json.loads(manifest.read_text())
    del stored["sha256"]
    manifest.write_text(json.dumps(stored | {"base_fingerprint": "0" * 64}))
    with pytest.raises(openai.APIStatusError):
        await ask(model, "tiny@1")
    options = {"kl_penalty_coef": 0.1, "kl_penalty_reference_step": 1}
    with pytest.raises(art.ConfigError, match="trained over another base model"):
        await backend.train(model, _groups_of(sequences), **LEARN | options)


async def test_a_registered_model_does_not_change_its_base_model(
    registered, make_model, tiny_directory, tmp_path
):
    _, backend = await registered()
    other = make_model(base_model=str(save_tiny_model(tmp_path / "other", seed=5)))
    with pytest.raises(art.ConfigError, match="is registered over base model"):
        await backend.register(other)
    same = make_model(base_model=f"{tiny_directory}/")
    assert (await backend.register(same)).model_name == "tiny"
    await same.close()


async def test_device_time_is_charged_also_when_a_step_fails(registered, sequences):
    model, backend = await registered(gpu_cost_per_hour_usd=3600.0)
    charged = []
    backend._charge = lambda m: charged.append(backend._timer.take())
    with pytest.raises(art.ConfigError, match="no training option 'learning_rat'"):
        await backend.train(model, _groups_of(sequences), learning_rat=1)
    assert charged == []
    await backend.train(model, _groups_of(sequences), **LEARN)
    backend._sessions[model.run_dir.resolve()].train = None
    with pytest.raises(TypeError):
        await backend.train(model, _groups_of(sequences), **LEARN)
    await backend.close()
    assert len(charged) == 3
    assert all(seconds > 0 for seconds in charged)


async def test_a_device_without_a_price_is_reported_when_a_model_is_registered(
    registered, monkeypatch, caplog
):
    held = attrs.evolve(placement("cpu"), device=torch.device("cuda"), device_name="Toaster 9")
    monkeypatch.setattr("art_local.backend.charged_devices", lambda *_: [held])
    model, _ = await registered()
    assert caplog.text.count("no price is known for device 'Toaster 9'") == 1
    assert "costs/gpu" not in (await model.log()).metrics


async def test_an_explicit_price_gives_costs_on_a_cpu_too(registered):
    model, _ = await registered(gpu_cost_per_hour_usd=Decimal(3600))
    await model.train(await some_groups(model), **LEARN)
    row = await model.log(metrics={"x": 1.0}, split="train")
    assert row.metrics["costs/cum/gpu"] > 0


async def test_a_checkpoint_that_cannot_be_written_says_that_the_step_counts(registered, sequences):
    model, backend = await registered()
    (model.run_dir / "checkpoints").write_text("in the way")
    with pytest.raises(art.BackendError, match="step 1 is trained and served, but checkpoint 1"):
        await backend.train(model, _groups_of(sequences), **LEARN)
    assert await backend.step(model) == 1
    (model.run_dir / "checkpoints").unlink()
    assert (await backend.train(model, _groups_of(sequences), **LEARN)).step == 2


async def test_a_step_that_is_of_no_use_leaves_weights_checkpoint_and_run_as_they_were(
    registered, make_model, sequences
):
    model, backend = await registered()
    await backend.train(model, _groups_of(sequences), **LEARN)
    before = logprobs(await ask(model))
    with pytest.raises(art.BackendError, match="the step does not count"):
        await backend.train(model, _groups_of(sequences), **LEARN | {"learning_rate": 1e30})
    assert logprobs(await ask(model)) == pytest.approx(before, abs=1e-6)
    await shut(model, backend)
    again, _ = await registered(make_model())
    assert await again.get_step() == 1
    assert logprobs(await ask(again)) == pytest.approx(before, abs=1e-5)


async def test_an_engine_error_is_not_hidden_by_that_of_the_checkpoint(
    registered, sequences, monkeypatch
):
    model, backend = await registered()
    session = backend._sessions[model.run_dir.resolve()]

    def failing(adapter, weights):
        raise art.EngineError("the engine is gone")

    monkeypatch.setattr(session.engine, "publish", failing)
    (model.run_dir / "checkpoints").write_text("in the way")
    with pytest.raises(art.EngineError, match="the engine is gone") as caught:
        await backend.train(model, _groups_of(sequences), **LEARN)
    assert "step 1 is trained, not served, but checkpoint 1" in caught.value.__notes__[0]


async def test_several_models_live_in_one_backend(registered, make_model, sequences):
    one, backend = await registered(make_model("one"))
    two = make_model("two")
    await two.register(backend)
    await backend.train(one, _groups_of(sequences), **LEARN)
    assert (await backend.step(one), await backend.step(two)) == (1, 0)
    assert logprobs(await ask(one)) != logprobs(await ask(two))
    await two.openai_client().close()
    await two.close()


async def test_a_model_that_is_not_registered_and_a_closed_backend_say_so(registered, make_model):
    _, backend = await registered()
    other = make_model("other")
    with pytest.raises(art.ConfigError, match="'other' is not registered with this backend"):
        await backend.step(other)
    await backend.close()
    await backend.close()
    with pytest.raises(art.BackendError, match="the local backend is closed"):
        await backend.step(other)
