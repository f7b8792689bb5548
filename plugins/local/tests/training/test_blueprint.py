"""Memory counted over shapes equals the memory of a pass over values."""

from __future__ import annotations

import pytest
import torch

from art_local.testing.families import make_family
from art_local.training import attention
from art_local.training.blueprint import Blueprint, saved_storages
from art_local.training.policy import Policy

FAMILIES = ("Llama", "Qwen3", "Gemma 2", "Mistral, sliding window", "Qwen3 MoE", "GPT-NeoX")
LENGTH = 120


def measured(policy, *, on):
    policy.checkpointing.choose(on=on)
    ids = torch.arange(LENGTH) % 90 + 1
    with saved_storages(policy) as found:
        policy.logprobs(ids[None], torch.arange(LENGTH - 1), ids[1:], chunk_size=512)
    return sum(found.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("lora", [(4, 8), None], ids=["LoRA", "whole"])
@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_those_of_a_pass(family, lora, dtype, monkeypatch):
    monkeypatch.setattr(attention, "MAX_SHORT", 0)  # as in rows of thousands of tokens
    model = make_family(family)
    policy = Policy(model if lora is None else model.to(dtype), dtype=dtype, lora=lora, seed=0)
    blueprint = Blueprint.of(policy)
    found = blueprint.kept(1, LENGTH)
    whole, inputs = measured(policy, on=False), measured(policy, on=True)
    assert found.whole == pytest.approx(whole, rel=0.1)
    # two layers, so that one of them, and its gradients, are held whole
    assert found.checkpointed == pytest.approx(whole, rel=0.1)
    assert blueprint._count(1, LENGTH, checkpointed=True) == pytest.approx(inputs, rel=0.1)


@pytest.mark.parametrize("family", ["Qwen3", "Gemma 2", "Mistral, sliding window", "Qwen3 MoE"])
def test_other_lengths_follow_from_three(family):
    blueprint = Blueprint(make_family(family).config, dtype=torch.bfloat16, lora=(4, 8))
    for length in (100, 3000, 9000):
        found, counted = blueprint.estimated(length), blueprint.kept(1, length)
        assert found.whole == pytest.approx(counted.whole, rel=0.01)
        assert found.checkpointed == pytest.approx(counted.checkpointed, rel=0.01)


def test_a_blueprint_has_the_parameters_of_the_model_and_no_values():
    policy = Policy(make_family("Qwen3"), dtype=torch.float32, lora=(4, 8), seed=0)
    drawn = Blueprint.of(policy).policy
    shapes = {n: p.shape for n, p in policy.model.named_parameters()}
    assert {n: p.shape for n, p in drawn.model.named_parameters()} == shapes
    assert all(p.is_meta for p in drawn.model.parameters())
    assert drawn.trained().keys() == policy.trained().keys()


def test_making_one_leaves_the_random_state():
    before = torch.get_rng_state()
    Blueprint(make_family("Llama").config, dtype=torch.float32, lora=(4, 8)).kept(1, 8)
    assert torch.equal(before, torch.get_rng_state())
