"""Distillation against oracles: plain autograd for the step, whole distributions for the goal."""

from __future__ import annotations

import math

import attrs
import pytest
import torch

from art_core.rl.config import TrainConfig
from art_core.rl.distill import distilled
from art_core.rl.losses import PRESETS
from art_local.training.losses import Tokens, token_losses
from art_local.training.trainer import Trainer


@pytest.mark.parametrize("packing", [True, False])
def test_the_gradient_of_a_step_is_that_of_plain_autograd(make_policy, sequences, packing):
    policy, generator = make_policy(lora=None), torch.Generator().manual_seed(3)
    scored = [
        attrs.evolve(
            s,
            advantage=0.0,
            weight=1.0,
            teacher_logprobs=tuple(
                float(-6 * torch.rand((), generator=generator)) for _ in s.token_ids
            ),
        )
        for s in sequences
    ]
    trainer = Trainer(policy, progress=False)
    found = {}

    def keep(*_):
        found.update({n: p.grad.clone() for n, p in policy.trained().items()})
        trainer.optimizer.drop_gradients()
        return 0.0

    trainer.optimizer.step = keep
    config = TrainConfig(loss_fn="distill", packing=packing)
    trainer.step([distilled(s, 1.0) for s in scored], config)

    total = count = 0.0
    for s in scored:
        logits = policy.model(input_ids=torch.tensor([s.token_ids])).logits[0, :-1]
        logprobs = logits.log_softmax(1).gather(1, torch.tensor(s.token_ids)[1:, None])[:, 0]
        for place in range(1, len(s.token_ids)):
            if s.trainable[place]:
                logprob = logprobs[place - 1]
                ratio = min(math.exp(float(logprob.detach()) - s.logprobs[place]), 2.0)
                reverse_kl = s.logprobs[place] - s.teacher_logprobs[place]
                total, count = total + ratio * reverse_kl * logprob, count + 1
    (total / count).backward()
    for name, parameter in policy.trained().items():
        wanted = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        torch.testing.assert_close(found[name], wanted, rtol=1e-4, atol=1e-5, msg=name)


def test_the_mean_over_all_samples_is_the_gradient_of_the_reverse_kl():
    """Every token of a vocabulary of 50, each with its probability: no sampling is left."""
    generator = torch.Generator().manual_seed(0)
    logits_V = torch.randn(50, generator=generator, dtype=torch.float64).requires_grad_()
    teacher_V = torch.randn(50, generator=generator, dtype=torch.float64).log_softmax(0)
    policy_V = logits_V.log_softmax(0)
    (policy_V.exp() * (policy_V - teacher_V)).sum().backward()
    wanted, logits_V.grad = logits_V.grad, None

    old_V = logits_V.detach().log_softmax(0)
    logprobs_V = logits_V.log_softmax(0)
    tokens = Tokens(
        logprobs_R=logprobs_V,
        old_logprobs_R=old_V,
        advantages_R=teacher_V - old_V,
        weights_R=torch.ones(50),
        sequences_R=torch.arange(50),
        entropies_R=torch.zeros(50),
    )
    losses_V = token_losses(PRESETS["distill"], tokens).losses_R
    (old_V.exp() * losses_V).sum().backward()
    torch.testing.assert_close(logits_V.grad, wanted, rtol=1e-9, atol=1e-12)
