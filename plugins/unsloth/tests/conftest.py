"""Fixtures: a tiny model on disk, and worker processes that serve one test after
another, since each takes seconds to import Unsloth.
"""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path

import pytest

import art_core as art
from art_core.testing.backend import plugins_with_prices
from art_unsloth.backend import UnslothBackend
from art_unsloth.channel import Worker
from art_unsloth.options import UnslothOptions

SMALL = {"device": "cpu", "lora_rank": 4, "lora_alpha": 8, "progress": False}


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory) -> Path:
    from art_local.testing.tiny import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def installed():
    if importlib.util.find_spec("unsloth") is None:
        pytest.skip("Unsloth is not installed: pip install --no-deps unsloth unsloth_zoo")


class Workers:
    """Gives out workers; one that a backend ended goes to the next."""

    def __init__(self):
        self.idle: list[Worker] = []
        self.made: list[Worker] = []

    def __call__(self, on_message):
        while self.idle:
            worker = self.idle.pop()
            if worker.exit_reason is None:
                worker.on_message = on_message
                return worker
        supply = self

        class Kept(Worker):
            def end(self, timeout=30.0):
                supply.idle.append(self)

        worker = Kept(on_message)
        self.made.append(worker)
        return worker


@pytest.fixture(scope="session")
def workers(installed):
    supply = Workers()
    yield supply
    for worker in supply.made:
        Worker.end(worker)


@pytest.fixture
def unsloth_backend(workers):
    """Make a backend on a worker that is there already: `unsloth_backend(**options)`."""

    def make(**options):
        given = {**SMALL, "gpu_cost_per_hour_usd": 1.0, **options}
        return UnslothBackend(UnslothOptions(**given), start=workers)

    return make


@pytest.fixture(scope="session")
def experts_directory(tiny_directory, tmp_path_factory) -> Path:
    """A tiny mixture of experts, with the tokenizer of the tiny model."""
    import shutil

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, Qwen3MoeConfig

    directory = tmp_path_factory.mktemp("models") / "experts"
    shutil.copytree(tiny_directory, directory)
    same = ("vocab_size", "hidden_size", "head_dim", "num_attention_heads", "num_key_value_heads")
    same += ("max_position_embeddings", "pad_token_id", "bos_token_id", "eos_token_id")
    tiny = AutoConfig.from_pretrained(directory)
    config = Qwen3MoeConfig(
        **{name: getattr(tiny, name) for name in same},
        num_hidden_layers=2,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(directory)
    return directory


@pytest.fixture
def make_model(tmp_path):
    """Open a run over a base model: `make_model(directory, name)`."""

    def make(directory, name="agent"):
        return art.TrainableModel(
            name=name,
            project="unsloth",
            base_model=str(directory),
            base_path=tmp_path,
            sinks=[],
            plugins=plugins_with_prices(),
        )

    return make


@pytest.fixture
def tiny_model(make_model, tiny_directory):
    """Open a run over the tiny model: `tiny_model(name)`."""
    return partial(make_model, tiny_directory)


@pytest.fixture
def tiny_experts(make_model, experts_directory):
    """Open a run over the tiny mixture of experts: `tiny_experts(name)`."""
    return partial(make_model, experts_directory)
