"""The entropy bonus: against autograd over whole logits, and the target that switches it off."""

from __future__ import annotations

import attrs
import pytest
import torch

from art_core.rl.config import TrainConfig
from art_local.training.losses import entropy_coefficient
from art_local.training.trainer import Trainer


def gradients(policy, sequences, **options):
    """The gradient of a step before it is taken, by name."""
    trainer = Trainer(policy, progress=False)
    found = {}

    def keep(*_):
        found.update({n: p.grad.clone() for n, p in policy.trained().items()})
        trainer.optimizer.drop_gradients()
        return 0.0

    trainer.optimizer.step = keep
    metrics = trainer.step(sequences, TrainConfig(**options))
    return found, metrics


@pytest.mark.parametrize("lora", [(4, 8), None], ids=["LoRA", "whole"])
@pytest.mark.parametrize("packing", [True, False])
def test_the_gradient_of_the_bonus_is_that_of_the_mean_entropy(
    make_policy, sequences, lora, packing
):
    options = {"packing": packing, "micro_batch_tokens": None if packing else 100}
    plain, _ = gradients(make_policy(lora=lora), sequences, **options)
    with_bonus, metrics = gradients(make_policy(lora=lora), sequences, entropy_coef=0.5, **options)
    policy = make_policy(lora=lora)
    total = 0.0
    for s in sequences:
        logits = policy.model(input_ids=torch.tensor([s.token_ids])).logits[0, :-1].float()
        logprobs = logits.log_softmax(1)
        entropies = -(logprobs.exp() * logprobs).sum(1)
        total = total + entropies[torch.tensor(s.trainable[1:])].mean()
    (-0.5 * total / len(sequences)).backward()
    assert metrics["loss/entropy_coef"] == 0.5
    for name, parameter in policy.trained().items():
        wanted = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        torch.testing.assert_close(
            with_bonus[name] - plain[name], wanted, rtol=1e-3, atol=1e-6, msg=name
        )


def test_entropy_rises_with_the_bonus(make_policy, sequences):
    flat = [attrs.evolve(s, advantage=0.0) for s in sequences]
    trainer = Trainer(make_policy(lora=None), progress=False)
    config = TrainConfig(learning_rate=1e-3, entropy_coef=1.0)
    found = [trainer.step(flat, config)["loss/entropy"] for _ in range(4)]
    assert found == sorted(found)
    assert found[-1] > found[0]


def test_with_a_target_the_bonus_is_off_where_sampled_tokens_are_improbable_enough(sequences):
    # -log p of all sampled tokens is 5.5
    config = TrainConfig(entropy_coef=0.1, entropy_target=5.0)
    assert entropy_coefficient(config, sequences) == 0.0
    assert entropy_coefficient(attrs.evolve(config, entropy_target=6.0), sequences) == 0.1
    assert entropy_coefficient(TrainConfig(entropy_coef=0.1), sequences) == 0.1
    assert entropy_coefficient(TrainConfig(), sequences) == 0.0
    assert entropy_coefficient(config, []) == 0.1


def test_a_step_that_has_its_entropy_is_the_plain_step(make_policy, sequences):
    plain, _ = gradients(make_policy(), sequences)
    off, metrics = gradients(make_policy(), sequences, entropy_coef=1.0, entropy_target=0.1)
    assert metrics["loss/entropy_coef"] == 0.0
    assert all(torch.equal(plain[name], off[name]) for name in plain)
