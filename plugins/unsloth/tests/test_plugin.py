"""The specs of art-unsloth, found by name, without Unsloth in this process."""

from __future__ import annotations

import importlib.util
import inspect
import math
from decimal import Decimal
from pathlib import Path

import attrs
import pytest

import art_core as art
from art_unsloth import wire
from art_unsloth.options import UnslothOptions
from art_unsloth.worker import WorkerBackend


@pytest.fixture
def without_unsloth(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name.startswith("unsloth") else find(name, *rest),
    )


def test_where_unsloth_is_missing_the_error_says_what_to_install(without_unsloth):
    with pytest.raises(art.ConfigError) as caught:
        art.backend("unsloth")
    assert str(caught.value).startswith(
        "backend 'unsloth' needs unsloth and unsloth_zoo, not installed here. "
        "Run `pip install art-unsloth`"
    )


def test_an_unknown_option_names_the_nearest(without_unsloth):
    with pytest.raises(art.ConfigError, match=r"'lora_rnk'.*Did you mean 'lora_rank'"):
        art.backend("unsloth", lora_rnk=4)


def test_options_are_those_of_the_local_backend_and_three_of_unsloths():
    from art_local.backend import LocalBackend

    local = inspect.signature(LocalBackend).parameters
    own = {field.name: field.default for field in attrs.fields(UnslothOptions)}
    assert set(own) - set(local) == {"load_in_4bit", "fast_inference", "max_seq_length"}
    assert set(local) - set(own) == {
        "full_finetune", "context_length", "engine_weights", "trainer_devices", "engine_devices",
    }  # fmt: skip


def test_a_wrong_option_is_refused_before_a_worker_starts():
    with pytest.raises(art.ConfigError, match="lora_rank"):
        UnslothOptions(lora_rank=0)


def test_a_key_of_an_engine_is_not_shown():
    assert "secret" not in repr(UnslothOptions(engine_key="secret"))


def test_options_travel_as_plain_values():
    engine_args = {"download_dir": Path("/models"), "max_num_seqs": 8}
    values = UnslothOptions(engine_args=engine_args, gpu_cost_per_hour_usd=Decimal("2.5")).values()
    assert values["engine_args"] == {"download_dir": "/models", "max_num_seqs": 8}
    assert type(values["gpu_cost_per_hour_usd"]) is float


async def test_an_option_without_a_limit_is_still_without_one_in_the_worker():
    given = {"truncated_importance_sampling": math.inf, "learning_rate": 1e-3, "loss_fn": "ppo"}
    trained = []

    class Local:
        async def train(self, model, groups, **options):
            trained.append(options)
            return art.TrainResult(step=1, metrics={})

    answers = []
    serving = WorkerBackend(answers.append)
    serving._backend = Local()
    model = {"name": "m", "project": "p", "base_model": "b", "run_dir": "run"}
    values = {"model": model, "groups": [], "options": wire.option_values(given)}
    line = wire.encoded({"number": 0, "operation": "train", "values": values})
    await serving.answer(wire.decoded(line))
    assert answers[0]["answer"]["step"] == 1
    assert trained == [given]
