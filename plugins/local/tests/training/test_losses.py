"""Losses against numbers that a reader can check by hand."""

from __future__ import annotations

import math

import pytest
import torch

from art_core.rl.presets import loss_preset
from art_local.training.losses import MAX_LOG_RATIO, log_ratios, ratio_metrics, token_losses

CISPO, PPO = loss_preset("cispo"), loss_preset("ppo")


def test_cispo_weighs_the_log_prob_by_a_clipped_ratio_that_has_no_gradient():
    logprobs = torch.tensor([-1.0, -1.0], requires_grad=True)
    old = torch.tensor([-1.0 - math.log(2), -1.0 - math.log(100)])  # ratios 2 and 100
    advantages = torch.tensor([1.0, -0.5])
    losses = token_losses(CISPO, logprobs, old, advantages).losses_R
    # -2 * 1 * -1, and the ratio of 100 clipped to 1 + 4: -5 * -0.5 * -1
    assert losses.tolist() == pytest.approx([2.0, -2.5])
    losses.sum().backward()
    assert logprobs.grad.tolist() == pytest.approx([-2.0, 2.5])


def test_ppo_takes_the_worse_of_the_ratio_and_the_clipped_ratio():
    logprobs = torch.log(torch.tensor([1.5, 0.5, 1.5, 0.5])).requires_grad_()
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0])
    losses = token_losses(PPO, logprobs, torch.zeros(4), advantages).losses_R
    assert losses.tolist() == pytest.approx([-1.28, -0.5, 1.5, 0.8])
    losses.sum().backward()
    # where the clipped ratio wins there is nothing to learn
    assert logprobs.grad.tolist() == pytest.approx([0.0, -0.5, 1.5, 0.0])


@pytest.mark.parametrize("preset", [CISPO, PPO], ids=["cispo", "ppo"])
@pytest.mark.parametrize("old", [-math.inf, math.inf, math.nan, -1e30, 1e30])
def test_losses_and_gradients_are_finite_whatever_the_engine_reported(preset, old):
    logprobs = torch.tensor([-2.0, -2.0], requires_grad=True)
    losses = token_losses(preset, logprobs, torch.tensor([old, old]), torch.tensor([1.0, -1.0]))
    losses.losses_R.sum().backward()
    assert losses.losses_R.isfinite().all()
    assert logprobs.grad.isfinite().all()


def test_a_log_prob_that_the_engine_did_not_have_counts_as_on_policy():
    ratios = log_ratios(torch.tensor([-2.0]), torch.tensor([math.nan]))
    assert ratios.tolist() == [0.0]


def test_log_ratios_are_clamped():
    ratios = log_ratios(torch.tensor([0.0, -90.0]), torch.tensor([-90.0, 0.0]))
    assert ratios.tolist() == [MAX_LOG_RATIO, -MAX_LOG_RATIO]


def test_ratio_metrics_count_each_token_once():
    ratios = [torch.log(torch.tensor([1.0, 2.0])), torch.log(torch.tensor([6.0]))]
    metrics = ratio_metrics(ratios, CISPO)
    assert metrics["loss/importance_ratio_mean"] == pytest.approx(3.0)
    assert metrics["loss/importance_ratio_p95"] == pytest.approx(2 + 0.9 * 4)
    assert metrics["loss/importance_ratio_p99"] == pytest.approx(2 + 0.98 * 4)
    assert metrics["loss/clipped_token_fraction"] == pytest.approx(1 / 3)
    k3 = [0, 1 - math.log(2), 5 - math.log(6)]
    assert metrics["loss/kl_k3"] == pytest.approx(sum(k3) / 3)
