"""Running out of memory: once more in smaller pieces, then an error that names what to lower."""

from __future__ import annotations

import pytest
import torch

from art_core.base.errors import BackendError
from art_core.rl.config import TrainConfig
from art_local.training.reference import under
from art_local.training.trainer import Trainer

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("DefaultCPUAllocator: not enough memory"),
    MemoryError(),
]


def fail_above(policy, tokens, error):
    """Let a pass of more than so many tokens run out of memory; return the sizes tried."""
    logprobs, tried = policy.logprobs, []

    def limited(ids_BS, *args, **options):
        tried.append(ids_BS.numel())
        if ids_BS.numel() > tokens:
            raise error
        return logprobs(ids_BS, *args, **options)

    policy.logprobs = limited
    return tried


def weights(policy):
    return torch.cat([p.detach().flatten() for p in policy.trained().values()])


@pytest.mark.parametrize("error", ERRORS, ids=["CUDA", "cuBLAS", "CPU", "Python"])
@pytest.mark.parametrize("several", [None, 6])
def test_a_step_is_tried_once_more_at_half_the_micro_batch(
    make_policy, sequences, caplog, error, several
):
    config = {"learning_rate": 1e-3, "grad_accumulation_sequences": several, "packing": False}
    calm = make_policy()
    wanted = Trainer(calm, progress=False).step(sequences, TrainConfig(**config))
    policy = make_policy(activation_checkpointing=False)
    tried = fail_above(policy, 110, error)
    found = Trainer(policy, progress=False).step(
        sequences, TrainConfig(**config, micro_batch_tokens=200)
    )
    assert max(tried) > 110 and max(tried[1:]) <= 110
    assert found["loss/train"] == pytest.approx(wanted["loss/train"], rel=1e-4)
    assert torch.allclose(weights(policy), weights(calm), atol=1e-5)
    assert "trying once more with 100 tokens at once. Set micro_batch_tokens=100" in caplog.text
    assert caplog.text.count("trying once more") == 1


@pytest.mark.parametrize("error", ERRORS, ids=["CUDA", "cuBLAS", "CPU", "Python"])
def test_a_second_time_names_the_tokens_the_budget_and_the_settings_to_lower(
    make_policy, sequences, error
):
    policy = make_policy(activation_checkpointing=False)
    before = weights(policy)
    trainer = Trainer(policy, progress=False)
    tried = fail_above(policy, 0, error)
    told = (
        r"out of memory on cpu with at most 50 tokens at once, also when tried again with half as "
        r"many; the longest sequence has 39 tokens; the weights stay as they were\. "
        r"Lower micro_batch_tokens \(now 100\) or logprob_calculation_chunk_size \(now 256\)"
    )
    config = TrainConfig(micro_batch_tokens=100, packing=False)
    with pytest.raises(BackendError, match=told) as caught:
        trainer.step(sequences, config)
    assert caught.value.__cause__ is error
    assert len(tried) == 2
    assert torch.equal(before, weights(policy))
    del policy.logprobs
    assert trainer.step(sequences, config)["data/step_num_gradient_steps"] == 1.0


@pytest.mark.parametrize("error", ERRORS, ids=["CUDA", "cuBLAS", "CPU", "Python"])
def test_activation_checkpointing_is_tried_before_smaller_passes(
    make_policy, sequences, caplog, error
):
    policy, tried = make_policy(), []
    logprobs = policy.logprobs

    def limited(ids_BS, *args, **options):
        tried.append(ids_BS.numel())
        if not policy.checkpointing.on:
            raise error
        return logprobs(ids_BS, *args, **options)

    policy.logprobs = limited
    trainer, config = Trainer(policy, progress=False), TrainConfig(packing=False)
    for _ in range(2):
        assert trainer.step(sequences, config)["data/step_num_gradient_steps"] == 1.0
        assert policy.checkpointing.on
    assert tried == [468, 468, 468]
    assert "trying again with activation checkpointing, which stays on" in caplog.text
    assert caplog.text.count("trying") == 1


def test_a_pass_without_gradients_is_made_smaller_at_once(make_policy, sequences):
    policy = make_policy()
    tried = fail_above(policy, 110, ERRORS[0])
    config = TrainConfig(packing=False, micro_batch_tokens=200, grad_accumulation_sequences=6)
    Trainer(policy, progress=False).step(sequences, config)
    assert max(tried[1:]) <= 110
    assert not policy.checkpointing.on


def test_another_error_is_not_tried_again(make_policy, sequences):
    policy = make_policy()
    tried = fail_above(policy, 0, RuntimeError("a kernel is missing"))
    with pytest.raises(RuntimeError, match="a kernel is missing"):
        Trainer(policy, progress=False).step(sequences, TrainConfig(packing=False))
    assert len(tried) == 1


def test_memory_that_runs_out_in_the_optimizer_is_told_at_once(make_policy, sequences):
    trainer = Trainer(make_policy(), progress=False)

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    trainer.optimizer.step = fail
    with pytest.raises(BackendError, match="on cpu with at most 1024 tokens at once; the"):
        trainer.step(sequences, TrainConfig(packing=False))


def test_the_optimizers_own_step_is_not_said_to_have_been_tried_again(
    make_policy, sequences, monkeypatch
):
    policy = make_policy(activation_checkpointing=False)
    trainer = Trainer(policy, progress=False)
    fail_above(policy, 110, ERRORS[0])  # so that the budget is halved before

    def out_of_memory(*_):
        raise ERRORS[0]

    monkeypatch.setattr(trainer.optimizer, "step", out_of_memory)
    with pytest.raises(BackendError, match="with at most 100 tokens at once; the longest"):
        trainer.step(sequences, TrainConfig(micro_batch_tokens=200, packing=False))


def state(trainer):
    return {name: tensor.clone() for name, tensor in trainer.optimizer.state().items()}


def fail_at(number, work):
    """Return work that runs out of memory in one of its calls."""
    calls = []

    def failing(*args):
        calls.append(args)
        if len(calls) == number:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return work(*args)

    return failing


@pytest.mark.parametrize("several", [None, 6], ids=["one step", "the second of two"])
@pytest.mark.parametrize("lora", [(4, 8), None], ids=["LoRA", "whole"])
@pytest.mark.parametrize("place", ["in the optimizer", "when weights are served", "in the check"])
def test_memory_that_runs_out_in_an_optimizer_step_leaves_the_weights_as_they_were(
    make_policy, sequences, monkeypatch, place, lora, several
):
    policy = make_policy(lora=lora)
    trainer = Trainer(policy, progress=False)
    config = TrainConfig(learning_rate=1e-2, grad_accumulation_sequences=several)
    trainer.step(sequences, config)
    before, served, moments = weights(policy), policy.serving, state(trainer)

    steps = 2 if several else 1
    owner, method, number = {
        "in the optimizer": (trainer.optimizer, "_update", steps * len(policy.trained())),
        "when weights are served": (policy, "refresh" if lora else "_cast", steps),
        "in the check": (policy, "is_finite_on", steps),
    }[place]
    with monkeypatch.context() as broken:
        broken.setattr(owner, method, fail_at(number, getattr(owner, method)))
        with pytest.raises(BackendError, match="the weights stay as they were"):
            trainer.step(sequences, config)
    assert torch.equal(before, weights(policy))
    assert policy.serving is served
    after = state(trainer)
    assert all(torch.equal(moments[name], after[name]) for name in moments)

    calm = Trainer(make_policy(lora=lora), progress=False)
    wanted = [calm.step(sequences, config) for _ in range(2)][1]
    assert trainer.step(sequences, config) == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_a_policy_comes_back_from_a_reference_without_merging_anew(make_policy, sequences):
    policy = make_policy()
    Trainer(policy, progress=False).step(sequences, TrainConfig(learning_rate=1e-2))
    before, served = weights(policy), policy.serving
    zeros = {name: torch.zeros_like(p) for name, p in policy.trained().items()}
    with under(policy, lambda: zeros):
        assert not weights(policy).any()
        assert policy.serving is not served
    assert torch.equal(before, weights(policy))
    assert policy.serving is served
