"""Merged LoRA: one product a layer, the same numbers as peft's two branches."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch

from art_local.training.lora import PREFIX, dithered, lora_layers
from art_local.training.noise import preserved_random_state
from art_local.training.policy import Policy


def move(policy, scale=0.05):
    """Give A and B values as training would."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in policy.trained().values():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    policy.refresh()


def with_peft_forward(policy):
    for layer in lora_layers(policy.model).values():
        del layer.forward
    return policy.model


IDS = torch.arange(40).reshape(2, 20)


def test_logits_on_merged_weights_equal_those_of_pefts_own_forward(make_policy):
    policy = make_policy()
    move(policy)
    with torch.no_grad():
        ours = policy.model(input_ids=IDS).logits
        theirs = with_peft_forward(policy)(input_ids=IDS).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_gradients_on_merged_weights_equal_those_of_pefts_own_forward(make_policy):
    def gradients(policy, model):
        model(input_ids=IDS).logits.square().mean().backward()
        return {name: p.grad for name, p in policy.trained().items()}

    one, other = make_policy(), make_policy()
    move(one)
    move(other)
    ours, theirs = gradients(one, one.model), gradients(other, with_peft_forward(other))
    assert len(ours) == 2 * 2 * 7
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-3, atol=1e-6)


def test_the_base_model_with_merged_tensors_in_place_is_the_adapted_model(make_policy):
    policy, plain = make_policy(), make_policy(lora=None)
    move(policy)
    tensors = policy.serving
    assert not any(name.startswith(PREFIX) for name in tensors)
    plain.base.load_state_dict(tensors, strict=False)
    with torch.no_grad():
        wanted = policy.model(input_ids=IDS).logits
        torch.testing.assert_close(plain.base(input_ids=IDS).logits, wanted)


def test_a_stored_state_is_merged_without_moving_the_policy(make_policy):
    policy = make_policy()
    start = {name: p.detach().clone() for name, p in policy.trained().items()}
    before = policy.serving
    move(policy)
    after = policy.serving
    assert policy.serving is after
    for name, tensor in policy.serving_of(start).items():
        torch.testing.assert_close(tensor, before[name])
    assert any(not torch.equal(after[name], before[name]) for name in after)


def test_the_start_is_drawn_from_the_seed_and_not_from_the_global_rng(make_policy):
    state = torch.get_rng_state()
    one, same, other = make_policy(seed=1), make_policy(seed=1), make_policy(seed=2)
    assert torch.equal(state, torch.get_rng_state())
    name = next(n for n in one.trained() if "lora_A" in n)
    assert torch.equal(one.trained()[name], same.trained()[name])
    assert not torch.equal(one.trained()[name], other.trained()[name])


def test_the_random_states_of_other_gpus_are_left_alone(make_policy, monkeypatch):
    kept = []

    def fork_rng(devices=None):
        kept.append(devices)  # None would be those of all devices
        return nullcontext()

    monkeypatch.setattr(torch.random, "fork_rng", fork_rng)
    make_policy()
    assert kept
    assert kept == [[]] * len(kept)
    with preserved_random_state(torch.device("cuda:1")):
        assert kept[-1] == [torch.device("cuda:1")]


def test_an_unchanged_weight_keeps_its_bf16_value():
    weight = torch.randn(300, 400, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(dithered(weight.float(), torch.bfloat16, salt=3), weight)


def test_changes_far_below_a_bf16_step_survive_on_average():
    weight = torch.randn(1000, 1100, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    change = 1e-5
    assert torch.equal(
        (weight + change).bfloat16()[weight.abs() > 0.1], weight.bfloat16()[weight.abs() > 0.1]
    )
    moved = dithered(weight + change, torch.bfloat16).float() - weight
    assert float(moved.double().mean()) == pytest.approx(change, rel=0.2)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
def test_layers_that_keep_their_weight_transposed_are_merged_so():
    from transformers import AutoModelForCausalLM, GPT2Config

    config = GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    plain = AutoModelForCausalLM.from_config(config).eval()
    policy = Policy(copy.deepcopy(plain), dtype=torch.float32, lora=(4, 8), seed=0)
    move(policy)
    with torch.no_grad():
        wanted = policy.model(input_ids=IDS).logits
        assert not torch.allclose(plain(input_ids=IDS).logits, wanted, atol=1e-3)
        plain.load_state_dict(policy.serving, strict=False)
        torch.testing.assert_close(plain(input_ids=IDS).logits, wanted)


def test_an_adapter_that_has_not_learned_serves_the_bases_own_tensors(make_policy):
    policy = make_policy()
    places = {p.data_ptr() for p in policy.base.parameters()}
    assert {t.data_ptr() for t in policy.serving.values()} <= places
    handed_out = dict(policy.serving)
    before = {name: tensor.clone() for name, tensor in handed_out.items()}
    move(policy)
    assert not {t.data_ptr() for t in policy.serving.values()} & places
    assert all(torch.equal(handed_out[name], before[name]) for name in before)
