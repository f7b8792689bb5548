"""Running out of memory: once more in smaller pieces, then an error that says what to lower."""

from __future__ import annotations

import pytest
import torch

from art_core.errors import BackendError
from art_core.rl.config import TrainConfig
from art_local.training.trainer import Trainer

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory"),
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


@pytest.mark.parametrize("error", ERRORS, ids=["CUDA", "CPU", "Python"])
@pytest.mark.parametrize("several", [None, 6])
def test_a_step_is_tried_once_more_at_half_the_micro_batch(
    make_policy, sequences, caplog, error, several
):
    config = {"learning_rate": 1e-3, "grad_accumulation_sequences": several, "packing": False}
    calm = make_policy()
    wanted = Trainer(calm, progress=False).step(sequences, TrainConfig(**config))
    policy = make_policy()
    tried = fail_above(policy, 110, error)
    found = Trainer(policy, progress=False).step(
        sequences, TrainConfig(**config, micro_batch_tokens=200)
    )
    assert max(tried) > 110 and max(tried[1:]) <= 110
    assert found["loss/train"] == pytest.approx(wanted["loss/train"], rel=1e-4)
    assert torch.allclose(weights(policy), weights(calm), atol=1e-5)
    assert "trying once more with 100 tokens at once. Set micro_batch_tokens=100" in caplog.text
    assert caplog.text.count("trying once more") == 1


@pytest.mark.parametrize("error", ERRORS, ids=["CUDA", "CPU", "Python"])
def test_a_second_time_names_the_tokens_the_budget_and_the_settings_to_lower(
    make_policy, sequences, error
):
    policy = make_policy()
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
    policy = make_policy()
    trainer = Trainer(policy, progress=False)
    fail_above(policy, 110, ERRORS[0])  # so that the budget is halved before

    def out_of_memory(*_):
        raise ERRORS[0]

    monkeypatch.setattr(trainer.optimizer, "step", out_of_memory)
    with pytest.raises(BackendError, match="with at most 100 tokens at once; the longest"):
        trainer.step(sequences, TrainConfig(micro_batch_tokens=200, packing=False))
