"""Activation checkpointing: less is kept, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from art_core.base.errors import ConfigError
from art_core.rl.config import TrainConfig
from art_core.rl.sequences import TokenSequence
from art_local.backend import LocalBackend
from art_local.models.device_memory import DeviceMemory
from art_local.testing.families import make_family
from art_local.training import pass_size
from art_local.training.blueprint import Blueprint, saved_storages
from art_local.training.checkpointing import Checkpointing
from art_local.training.policy import Policy
from art_local.training.trainer import Trainer

PACKED, IN_ROWS = ("Qwen3", "Qwen3 MoE", "DeepSeek V3"), ("Gemma 2", "gpt-oss", "Qwen3-Next")


def family_policy(family, *, lora, mode, dtype=torch.float32):
    model = make_family(family)
    return Policy(
        model if lora is None else model.to(dtype),
        dtype=dtype,
        lora=lora,
        seed=0,
        activation_checkpointing=mode,
    )


@pytest.fixture
def sharing():
    """Sequences over 97 tokens that begin alike."""
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(1, 90, (6,), generator=generator).tolist()
    return [
        TokenSequence(
            token_ids=(*prompt, *torch.randint(1, 90, (own,), generator=generator).tolist()),
            trainable=(False,) * 6 + (True,) * own,
            logprobs=(0.0,) * 6 + (-4.0,) * own,
            advantage=advantage,
            weight=1 / own,
        )
        for own, advantage in ((6, 1.0), (14, -1.0), (24, 0.5))
    ]


def gradients(policy, sequences):
    """Return the loss and the gradients of one step, which is not taken."""
    trainer, found = Trainer(policy, progress=False), {}

    def keep(window, step):
        found.update({n: p.grad.clone() for n, p in policy.trained().items() if p.grad is not None})
        trainer.optimizer.drop_gradients()
        return 0.0

    trainer._optimizer_step = keep
    return trainer.step(sequences, TrainConfig())["loss/train"], found


@pytest.mark.parametrize("lora", [(4, 8), None], ids=["LoRA", "whole"])
@pytest.mark.parametrize("family", [*PACKED, *IN_ROWS])
def test_losses_and_gradients_are_those_without_it(family, lora, sharing):
    policies = [family_policy(family, lora=lora, mode=mode) for mode in (False, True)]
    (plain, wanted), (loss, found) = (gradients(policy, sharing) for policy in policies)
    assert all(policy.packs == (family in PACKED) for policy in policies)
    assert loss == pytest.approx(plain, abs=1e-6)
    assert found.keys() == wanted.keys()
    assert max(float((found[n] - wanted[n]).abs().max()) for n in wanted) <= 1e-6
    assert max(float(g.abs().max()) for g in wanted.values()) > 1e-3


def test_it_holds_under_autocast(sharing):
    policies = [
        family_policy("Qwen3", lora=None, mode=mode, dtype=torch.bfloat16) for mode in (False, True)
    ]
    (plain, wanted), (loss, found) = (gradients(policy, sharing) for policy in policies)
    assert loss == plain
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def kept(policy, length):
    ids = torch.arange(length) % 90 + 1
    with saved_storages(policy) as found:
        policy.logprobs(ids[None], torch.arange(length - 1), ids[1:], chunk_size=512)
    return sum(found.values())


@pytest.mark.parametrize("lora", [(4, 8), None], ids=["LoRA", "whole"])
def test_a_layer_keeps_little_more_than_its_input(lora):
    plain, checkpointed = (
        kept(family_policy("Qwen3", lora=lora, mode=mode), 96) for mode in (False, True)
    )
    assert checkpointed < plain / 5


def test_layers_are_computed_again_only_where_there_is_a_backward_pass(sharing):
    policy = family_policy("Qwen3", lora=(4, 8), mode=True)
    calls = []
    policy.checkpointing.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        kept(policy, 8)
    assert len(calls) == 1
    ids = torch.arange(1, 9)
    found, _ = policy.logprobs(ids[None], torch.arange(7), ids[1:], chunk_size=8)
    found.sum().backward()
    assert len(calls) == 3


@pytest.mark.parametrize("value", ["on", None, 1, 0, "True"])
def test_a_value_that_is_none_of_three_is_refused(value):
    with pytest.raises(ConfigError, match="activation_checkpointing must be 'auto', True or False"):
        LocalBackend(device="cpu", activation_checkpointing=value)


def test_a_model_without_decoder_layers_cannot_be_asked_for_it():
    with pytest.raises(ConfigError, match="Linear has no decoder layers"):
        Checkpointing(nn.Linear(1, 1), mode=True)
    assert not Checkpointing(nn.Linear(1, 1)).switch_on()


def with_free_memory(monkeypatch, free):
    monkeypatch.setattr(pass_size, "ROUGH_BYTES", 1 << 50)  # count in any case
    monkeypatch.setattr(pass_size, "bytes_per_token", lambda _: None)
    monkeypatch.setattr(
        pass_size, "device_memory", lambda _: DeviceMemory(total=1 << 40, free=int(free))
    )


def test_by_default_it_is_on_where_the_longest_sequence_does_not_fit(
    make_policy, sequences, monkeypatch
):
    policy = make_policy()
    trainer, config = Trainer(policy, progress=False), TrainConfig(packing=False)
    counted = Blueprint.of(policy).kept(1, 39)
    others = sum(p.nbytes for p in policy.trained().values()) + 12 * 256 * 260
    with_free_memory(monkeypatch, (counted.whole * 1.01 + others) / pass_size.USABLE)
    trainer.step(sequences, config)
    assert not policy.checkpointing.on
    with_free_memory(monkeypatch, (counted.whole * 0.99 + others) / pass_size.USABLE)
    trainer.step(sequences, config)
    assert policy.checkpointing.on
    with_free_memory(monkeypatch, 1 << 40)
    trainer.step(sequences, config)
    assert not policy.checkpointing.on


def test_passes_get_smaller_before_layers_are_computed_again(make_policy, sequences, monkeypatch):
    policy, widths = make_policy(), []
    logprobs = policy.logprobs

    def noted(ids_BS, *args, **options):
        widths.append(ids_BS.numel())
        return logprobs(ids_BS, *args, **options)

    monkeypatch.setattr(policy, "logprobs", noted)
    others = sum(p.nbytes for p in policy.trained().values()) + 12 * 256 * 260
    three = 3.1 * Blueprint.of(policy).kept(1, 39).whole
    with_free_memory(monkeypatch, (three + others) / pass_size.USABLE)
    Trainer(policy, progress=False).step(sequences, TrainConfig(packing=False))
    assert max(widths) == 3 * 39
    assert not policy.checkpointing.on


def test_passes_of_a_deterministic_step_do_not_depend_on_the_memory(
    make_policy, sequences, monkeypatch
):
    policy, passes = make_policy(), []
    logprobs = policy.logprobs

    def noted(ids_BS, *args, **options):
        passes.append(ids_BS.shape)
        return logprobs(ids_BS, *args, **options)

    monkeypatch.setattr(policy, "logprobs", noted)
    config = TrainConfig(packing=False)
    for deterministic, free in ((True, 1 << 40), (True, 1 << 20), (False, 1 << 20)):
        with_free_memory(monkeypatch, free)
        Trainer(policy, progress=False, deterministic=deterministic).step(sequences, config)
    ample, short, fitted = passes[:1], passes[1:2], passes[2:]
    assert ample == short
    assert len(fitted) > 1


@pytest.mark.parametrize("mode", [True, False])
def test_the_users_choice_stands_whatever_the_memory(make_policy, sequences, monkeypatch, mode):
    policy = make_policy(activation_checkpointing=mode)
    for free in (1, 1 << 40):
        with_free_memory(monkeypatch, free)
        Trainer(policy, progress=False).step(sequences, TrainConfig())
        assert policy.checkpointing.on is mode


def test_a_model_that_cannot_be_counted_is_trained_as_it_is(make_policy, sequences, monkeypatch):
    policy = make_policy()

    def counting(*_):
        raise RuntimeError("Tensor.item() cannot be called on meta tensors")

    monkeypatch.setattr(pass_size.Blueprint, "of", counting)
    with_free_memory(monkeypatch, 1)
    Trainer(policy, progress=False).step(sequences, TrainConfig())
    assert not policy.checkpointing.on
