"""Models and backends with ART's arguments and methods, over the local backend and echoes."""

from __future__ import annotations

import json
import logging

import pydantic
import pytest

import art
import art_core
from art._options import local_options, tinker_options, train_options, trainer_defaults
from art.metrics import MetricsBuilder, track_api_cost
from art_core.testing.echo import EchoBackend

ASKED = {"role": "user", "content": "yes"}


class EchoesOfArt(art.LocalBackend):
    """A backend of ART over one that echoes."""

    def of(self, model):
        return self._made.setdefault("echo", EchoBackend(gpu_cost_per_hour_usd=3600.0))


class Policy(pydantic.BaseModel):
    max_turns: int = 3


@pytest.fixture
def make_model(tmp_path):
    def make(**options) -> art.TrainableModel:
        given = {"name": "one", "project": "demo", "base_model": "echo-base", "report_metrics": []}
        return art.TrainableModel(**{**given, "base_path": str(tmp_path), **options})

    return make


@pytest.fixture
async def backend():
    async with EchoesOfArt() as made:
        yield made


async def rollout(model: art.Model, reward: float = 0.0) -> art.Trajectory:
    completion = await model.openai_client().chat.completions.create(
        model=model.name, messages=[ASKED]
    )
    return art.Trajectory(messages_and_choices=[ASKED, completion.choices[0]], reward=reward)


async def gathered(model: art.Model) -> list[art.TrajectoryGroup]:
    group = art.TrajectoryGroup(rollout(model, n) for n in range(2))
    return await art.gather_trajectory_groups([group], pbar_desc=None)


async def test_a_registered_model_has_the_address_of_its_endpoint(make_model, backend):
    model = make_model()
    assert (model.trainable, model.get_inference_name(), model.get_inference_name(3)) == (
        True,
        "one",
        "one@3",
    )
    await model.register(backend)
    assert model.inference_base_url.startswith("http://127.0.0.1:")
    assert model.inference_api_key
    assert model.get_inference_name() == model.inference_model_name == "one"
    recorded = {
        name: value
        for name, value in model.litellm_completion_params().items()
        if name in ("base_url", "api_key")
    }
    assert recorded["api_key"] != model.inference_api_key
    assert model.litellm_completion_params() == {
        "model": "hosted_vllm/one",
        **recorded,
        "temperature": 1,
    }
    assert await model.get_step() == 0
    await model.close()


async def test_train_logs_one_row_with_arts_defaults(make_model, backend):
    model = make_model(_internal_config={"trainer_args": {"max_grad_norm": 0.5}})
    await backend.register(model)
    result = await model.train(await gathered(model), config=art.TrainConfig(learning_rate=1e-4))
    assert result.step == await model.get_step() == 1
    stored = json.loads((model.run_dir / "options.jsonl").read_text())["options"]
    assert stored == {
        "learning_rate": 1e-4,
        "mask_truncated": False,
        "max_grad_norm": 0.5,
        "scale_rewards": True,
        "weight_decay": 0.1,
    }
    await model.close()


async def test_backend_train_and_log_write_the_row_that_train_writes(make_model, backend):
    model = make_model()
    await model.register(backend)
    groups = await gathered(model)
    result = await backend.train(model, groups, learning_rate=5e-6, verbose=True)
    assert isinstance(result, art.LocalTrainResult)
    assert result.checkpoint_path == str(model.run_dir / "checkpoints" / "0001")
    row = await model.log(groups, split="train", metrics=result.metrics, step=result.step)
    assert (row.step, row.metrics["reward/mean"]) == (1, 0.5)
    assert row.metrics["data/step_trainer_tokens"] > 0
    assert result.metrics.items() <= row.metrics.items()
    await model.close()


async def test_trajectories_exceptions_and_metrics_are_logged(make_model, backend):
    model = make_model()
    await model.register(backend)
    row = await model.log([art.Trajectory(reward=1.0, metrics={"acc": 1}), ValueError("late")])
    assert (row.split, row.step) == ("val", 0)
    assert row.metrics["val/reward"] == 1.0
    assert row.metrics["val/exception_rate"] == 0.5
    row = await model.log(metrics={"mine": 0.5}, split="train", step=1)
    assert 0.5 in row.metrics.values()
    await model.close()


async def test_all_checkpoints_stay_until_they_are_deleted(make_model, backend):
    model = make_model()
    await model.register(backend)
    for _ in range(5):
        await model.train(await gathered(model))
    assert [c.step for c in await model.checkpoints()] == [1, 2, 3, 4, 5]
    await model.delete_checkpoints()
    assert [c.step for c in await model.checkpoints()] == [5]
    await model.log([art.Trajectory(reward=1.0)])
    for _ in range(2):
        await model.train(await gathered(model))
    assert await model.delete_checkpoints() == [6]
    assert [c.step for c in await model.checkpoints()] == [5, 7]
    await model.close()


async def test_a_config_of_pydantic_is_kept_and_recorded(make_model, backend):
    model = make_model(config=Policy(max_turns=5))
    assert model.config.max_turns == 5
    await model.register(backend)
    await model.log(metrics={"mine": 0.5})
    stored = json.loads((model.run_dir / "model.json").read_text())
    assert stored["config"] == {"max_turns": 5}
    await model.close()


async def test_facts_for_wandb_are_part_of_the_config_until_the_run_begins(make_model, backend):
    model = make_model(config=Policy())
    model.update_wandb_config({"data": {"name": "a"}})
    model.update_wandb_config({"data": {"size": 2}})
    assert model.config == {"max_turns": 3, "data": {"name": "a", "size": 2}}
    await model.register(backend)
    with pytest.raises(art_core.ConfigError, match="before register"):
        model.update_wandb_config({"late": True})
    await model.close()


async def test_state_is_merged_deeply_and_overwritten(make_model):
    model = make_model()
    assert model.read_state() is None
    model.merge_state({"data": {"offset": 1}, "best": 2})
    assert model.merge_state({"data": {"epoch": 3}}) == {
        "data": {"offset": 1, "epoch": 3},
        "best": 2,
    }
    model.overwrite_state({"best": 4})
    assert model.read_state() == {"best": 4}
    await model.close()


async def test_a_backends_path_is_where_its_models_are_logged(make_model, tmp_path):
    async with EchoesOfArt(path=str(tmp_path / "elsewhere")) as backend:
        model = make_model()
        await model.register(backend)
        assert model.run_dir == tmp_path / "elsewhere" / "demo" / "models" / "one"
        await model.close()
    prompted = art.Model(name="two", project="demo", report_metrics=[])
    await prompted.register(backend)
    assert prompted.run_dir.parent == model.run_dir.parent
    await prompted.close()


async def test_a_prompted_model_is_asked_by_its_own_name():
    model = art.Model(
        name="gpt", project="demo", inference_base_url="http://127.0.0.1:9", report_metrics=[]
    )
    assert (model.trainable, model.get_inference_name()) == (False, "gpt")
    assert model.litellm_completion_params()["model"] == "gpt"
    await model.close()


async def test_models_are_generic_dumped_and_copied(make_model):
    model = make_model(
        config=Policy(), entity="team", _internal_config=art.dev.InternalModelConfig()
    )
    assert art.TrainableModel[Policy] is art.TrainableModel
    assert isinstance(model, art.Model)
    dumped = model.model_dump()
    assert (dumped["name"], dumped["entity"], dumped["base_model"], dumped["config"]) == (
        "one",
        "team",
        "echo-base",
        {"max_turns": 3},
    )
    assert model.safe_model_dump()["config"] is None
    other = model.model_copy(update={"name": "two"})
    assert (other.name, other.project, other.config) == ("two", "demo", model.config)
    for each in (model, other):
        await each.close()


async def test_the_template_options_of_a_model_go_into_each_request(make_model, backend):
    model = make_model(_internal_config={"chat_template_kwargs": {"enable_thinking": False}})
    await model.register(backend)
    client = model.openai_client()
    sent = []

    async def note(request) -> None:
        sent.append(json.loads(request.content))

    client._client.event_hooks["request"].append(note)
    for _ in range(2):
        await model.openai_client().chat.completions.create(model="one", messages=[ASKED])
    assert [body["chat_template_kwargs"] for body in sent] == [{"enable_thinking": False}] * 2
    await model.close()


async def test_given_conversations_are_trained_as_one_step(make_model, backend):
    model = make_model()
    await model.register(backend)
    examples = [
        art.Trajectory(messages_and_choices=[ASKED, {"role": "assistant", "content": "no"}])
        for _ in range(4)
    ]
    config = art.TrainSFTConfig(learning_rate=[1e-4, 2e-4], batch_size=2)
    result = await model.train_sft(iter(examples), config)
    assert (result.step, await model.get_step()) == (1, 1)
    assert result.metrics["data/step_num_examples"] == 4
    await model.close()


async def test_a_model_that_is_not_registered_does_not_train(make_model):
    model = make_model()
    with pytest.raises(art_core.ConfigError, match="not registered"):
        await model.train([])
    with pytest.raises(art_core.ConfigError, match="price book"):
        model.set_cost_calculator(lambda *_: {})
    model.set_cost_calculator(None)
    await model.close()


async def test_costs_are_booked_by_arts_names(make_model, backend):
    model = make_model()
    await model.register(backend)

    @track_api_cost(
        source="judge/style",
        provider="openai",
        model_name="gpt-4.1",
        prompt_price_per_million=2.0,
        completion_price_per_million=8.0,
    )
    async def judge() -> dict:
        return {"usage": {"prompt_tokens": 1000, "completion_tokens": 500}}

    token = model.activate_metrics_context("eval")
    await judge()
    token.var.reset(token)
    row = await model.log(metrics={"mine": 1.0}, split="val")
    assert row.metrics["costs/eval/judge/style"] == pytest.approx(0.006)
    assert MetricsBuilder is art_core.MetricsBuilder
    await model.close()


def test_a_backend_closes_inside_a_running_loop_without_await(make_model):
    with art.LocalBackend() as backend:
        assert backend.path is None


def test_options_of_training_are_arts():
    defaults = trainer_defaults({"trainer_args": {"learning_rate": 1e-3, "weight_decay": 0.0}})
    assert defaults == {
        "learning_rate": 1e-3,
        "scale_rewards": True,
        "mask_truncated": False,
        "max_grad_norm": 0.1,
        "weight_decay": 0.0,
    }
    given = {"ppo": True, "beta": 0.01, "normalize_advantages": False, "plot_tensors": True}
    assert train_options({**given, "adam_params": None}, {}) == {
        "loss_fn": "ppo",
        "kl_penalty_coef": 0.01,
        "scale_rewards": False,
    }
    assert art_core.TrainConfig(**defaults).scale_rewards is True
    with pytest.raises(art_core.ConfigError, match="kl_penalty_reference_step"):
        train_options({"kl_ref_adapter_path": "/x"}, {})


def test_the_unstable_options_of_a_model_are_those_of_the_local_backend(caplog):
    config = art.dev.InternalModelConfig(
        init_args=art.dev.InitArgs(max_seq_length=8192, load_in_4bit=True),
        peft_args=art.dev.PeftArgs(r=4, lora_alpha=32),
        engine_args=art.dev.EngineArgs(enforce_eager=True),
        trainer_gpu_ids=[0],
        inference_gpu_ids=[1],
        use_decoupled_unsloth=True,
    )
    with caplog.at_level(logging.WARNING):
        options = local_options(config, vllm=False)
    assert options == {
        "lora_rank": 4,
        "lora_alpha": 32,
        "seed": 3407,
        "context_length": 8192,
        "device": "cuda:0",
        "engine_device": "cuda:1",
    }
    assert "init_args.load_in_4bit, engine_args.enforce_eager, use_decoupled_unsloth" in caplog.text
    assert local_options(config, vllm=True)["engine_args"] == {"enforce_eager": True}
    assert local_options({}, vllm=False) == {"lora_rank": 8, "lora_alpha": 16, "seed": 3407}
    several = local_options({"trainer_gpu_ids": [0, 1], "inference_gpu_ids": [2, 3]}, vllm=True)
    assert (several["trainer_devices"], several["engine_devices"]) == ([0, 1], [2, 3])


def test_the_adapter_at_tinker_has_the_rank_that_a_script_gives():
    config = {"tinker_args": {"renderer_name": "x", "training_client_args": {"rank": 1, "seed": 2}}}
    assert tinker_options(config) == {"lora_rank": 1, "seed": 2}
    assert tinker_options({}) == {}


def test_the_serverless_backend_has_the_team_of_the_model(make_model):
    pytest.importorskip("art_serverless")
    backend = art.ServerlessBackend(api_key="k", base_url="http://127.0.0.1:9/v1")
    assert backend.options_of(make_model(entity="team")) == {"entity": "team"}
    assert type(backend.of(make_model())).__module__.startswith("art_serverless")
