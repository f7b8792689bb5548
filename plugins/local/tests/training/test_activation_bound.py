"""The bound is above what models keep, and not far above for plain decoders of usual sizes."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig

from art_core.rl.config import TrainConfig
from art_core.rl.sequences import TokenSequence
from art_local.testing.families import make_family
from art_local.training import pass_size
from art_local.training.activation_bound import bytes_per_token
from art_local.training.blueprint import Blueprint, saved_storages
from art_local.training.packing import packed_tokens
from art_local.training.policy import Policy
from art_local.training.trainer import Trainer

LENGTH = 100
PLAIN = ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma")


@pytest.mark.parametrize("family", PLAIN)
def test_models_keep_less_than_the_bound(family):
    policy = Policy(make_family(family), dtype=torch.float32, lora=(4, 8), seed=0)
    most = bytes_per_token(policy)
    ids = torch.arange(LENGTH) % 90 + 1
    with saved_storages(policy) as found:
        policy._hidden(ids[None], torch.arange(LENGTH - 1), {})
    assert most is not None
    assert sum(found.values()) < most * LENGTH


@pytest.mark.parametrize(
    "family", ["Mistral, sliding window", "Gemma 2", "Qwen3 MoE", "Llama, eager"]
)
def test_layers_of_other_kinds_have_no_bound(family):
    model = make_family(family.removesuffix(", eager"))
    if family.endswith("eager"):
        model.set_attn_implementation("eager")
    assert bytes_per_token(Policy(model, dtype=torch.float32, lora=(4, 8), seed=0)) is None


def test_the_bound_of_a_model_of_usual_size_is_near():
    config = LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=2, num_attention_heads=9,
        num_key_value_heads=3, vocab_size=64,
    )  # fmt: skip
    blueprint = Blueprint(config, dtype=torch.float32, lora=(8, 16))
    most = bytes_per_token(blueprint.policy)
    assert most is not None
    assert 1 < most * 1024 / blueprint.kept(1, 1024).whole < 5


def test_nothing_is_counted_where_the_bound_fits(make_policy, sequences, monkeypatch):
    monkeypatch.setattr(pass_size, "ROUGH_BYTES", 1 << 50)
    monkeypatch.setattr(pass_size.Blueprint, "of", lambda _: pytest.fail("counted"))
    policy = make_policy()
    Trainer(policy, progress=False).step(sequences, TrainConfig())
    assert not policy.checkpointing.on


def test_a_prefix_that_sequences_share_counts_once():
    def sequence(*own):
        ids = (*range(10), *own)
        trainable = tuple(at >= 10 for at in range(len(ids)))
        return TokenSequence(
            token_ids=ids, trainable=trainable, logprobs=(0.0,) * len(ids), advantage=1.0
        )

    assert packed_tokens([sequence(20, 21), sequence(30), sequence(40, 41, 42)]) == 10 + 2 + 1 + 3
