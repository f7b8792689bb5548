"""Losses against numbers that a reader can check by hand."""

from __future__ import annotations

import math

import attrs
import pytest
import torch

from art_core.base.errors import ConfigError
from art_core.rl.config import TrainConfig
from art_core.rl.losses import PRESETS, LossSpec, loss_preset
from art_local.training.losses import (
    MAX_LOG_RATIO,
    Tokens,
    log_ratios,
    loss_function,
    ratio_metrics,
    ratios_at_level,
    token_losses,
)

CISPO, PPO = loss_preset("cispo"), loss_preset("ppo")


def losses_of(loss, logprobs, old, advantages, *, sequences=None, engine=None):
    logprobs = torch.as_tensor(logprobs)
    places = torch.zeros(len(logprobs), dtype=torch.long)
    return token_losses(
        loss,
        Tokens(
            logprobs_R=logprobs,
            old_logprobs_R=torch.as_tensor(old),
            advantages_R=torch.as_tensor(advantages),
            weights_R=torch.ones(len(logprobs)),
            sequences_R=places if sequences is None else torch.tensor(sequences),
            entropies_R=torch.zeros(len(logprobs)),
            engine_logprobs_R=None if engine is None else torch.as_tensor(engine),
        ),
        loss_function(loss),
    )


def with_ratios(*ratios):
    """Log-probs whose ratio to an old log-prob of 0 is this, with gradient."""
    return torch.log(torch.tensor(ratios)).requires_grad_()


def loss_and_slopes(loss, ratios, advantages, **more):
    """Losses, and their slope by each log-prob, of tokens with these ratios."""
    logprobs = with_ratios(*ratios)
    found = losses_of(loss, logprobs, torch.zeros(len(ratios)), advantages, **more)
    found.losses_R.sum().backward()
    return found.losses_R.tolist(), logprobs.grad.tolist(), found.clipped_R.tolist()


def test_cispo_weighs_the_log_prob_by_a_clipped_ratio_that_has_no_gradient():
    logprobs = torch.tensor([-1.0, -1.0], requires_grad=True)
    old = torch.tensor([-1.0 - math.log(2), -1.0 - math.log(100)])  # ratios 2 and 100
    found = losses_of(CISPO, logprobs, old, [1.0, -0.5])
    # -2 * 1 * -1, and the ratio of 100 clipped to 1 + 4: -5 * -0.5 * -1
    assert found.losses_R.tolist() == pytest.approx([2.0, -2.5])
    assert found.clipped_R.tolist() == [False, True]
    found.losses_R.sum().backward()
    assert logprobs.grad.tolist() == pytest.approx([-2.0, 2.5])


def test_ppo_takes_the_worse_of_the_ratio_and_the_clipped_ratio():
    losses, slopes, clipped = loss_and_slopes(PPO, [1.5, 0.5, 1.5, 0.5], [1.0, 1.0, -1.0, -1.0])
    assert losses == pytest.approx([-1.28, -0.5, 1.5, 0.8])
    # where the clipped ratio wins there is nothing to learn
    assert slopes == pytest.approx([0.0, -0.5, 1.5, 0.0])
    assert clipped == [True, False, False, True]


def test_ppo_lets_no_ratio_count_more_than_its_cap():
    losses, slopes, clipped = loss_and_slopes(PPO, [1.9, 50.0], [-1.0, -1.0])
    assert losses == pytest.approx([1.9, 2.0])
    assert slopes == pytest.approx([1.9, 0.0])
    assert clipped == [False, True]
    free = TrainConfig(loss_fn="ppo", truncated_importance_sampling=math.inf).loss
    assert loss_and_slopes(free, [50.0], [-1.0])[0] == pytest.approx([50.0])


def test_importance_sampling_weighs_by_the_ratio_up_to_a_cap_of_two():
    loss = loss_preset("importance_sampling")
    _, slopes, clipped = loss_and_slopes(loss, [0.1, 1.5, 9.0], [1.0, 1.0, -1.0])
    assert slopes == pytest.approx([-0.1, -1.5, 2.0])
    assert clipped == [False, False, True]


def test_gspo_clips_the_geometric_mean_of_a_sequence():
    # sequence 0 has ratios 2 and 1/2: its own ratio is 1; that of sequence 1 is sqrt(4 * 1) = 2
    losses, slopes, clipped = loss_and_slopes(
        loss_preset("gspo"), [2.0, 0.5, 4.0, 1.0], [1.0] * 4, sequences=[0, 0, 1, 1]
    )
    assert losses == pytest.approx([-1.0, -1.0, -1.0004, -1.0004])
    # the gradient of a sequence is spread over its tokens: 2 losses * 1/2 each
    assert slopes == pytest.approx([-1.0, -1.0, 0.0, 0.0])
    assert clipped == [False, False, True, True]


@pytest.mark.parametrize("name", ["dr_grpo", "dapo"])
def test_dr_grpo_and_dapo_clip_as_ppo_does(name):
    loss = loss_preset(name)
    losses, slopes, _ = loss_and_slopes(loss, [1.5, 0.5, 1.1], [1.0, -1.0, 1.0])
    assert losses == pytest.approx([-1 - loss.epsilon_high, 0.8, -1.1])
    assert slopes == pytest.approx([0.0, 0.0, -1.1])


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("token", [2.0, 8.0, 3.0]),
        ("sequence", [4.0, 4.0, 3.0]),  # sqrt(2 * 8)
        ("average", [3.0, 6.0, 3.0]),
        ("geometric_average", [math.sqrt(8), math.sqrt(32), 3.0]),
    ],
)
def test_the_level_says_how_a_sequences_ratios_are_shared(level, expected):
    logs = torch.log(torch.tensor([2.0, 8.0, 3.0]))
    found = ratios_at_level(logs, torch.tensor([7, 7, 3]), level)
    assert found.tolist() == pytest.approx(expected)


def test_the_cap_of_negative_advantages_leaves_positive_ones_alone():
    for name in ("cispo", "importance_sampling"):
        loss = TrainConfig(
            loss_fn=name,
            max_negative_advantage_importance_sampling_weight=1.5,
            truncated_importance_sampling=math.inf,
        ).loss
        _, slopes, _ = loss_and_slopes(loss, [3.0, 3.0, 1.2], [1.0, -1.0, -1.0])
        assert slopes == pytest.approx([-3.0, 1.5, 1.2])
    loss = TrainConfig(loss_fn="ppo", max_negative_advantage_importance_sampling_weight=1.1).loss
    assert loss_and_slopes(loss, [1.2, 1.2], [1.0, -1.0])[0] == pytest.approx([-1.2, 1.1])


def test_tokens_outside_of_the_clip_range_are_masked_when_asked():
    loss = TrainConfig(loss_fn="cispo", mask_prob_ratio=True, epsilon=0.5, epsilon_high=1.0).loss
    losses, slopes, clipped = loss_and_slopes(loss, [0.4, 1.5, 3.0], [1.0, 1.0, -1.0])
    assert losses == pytest.approx([0.0, -1.5 * math.log(1.5), 0.0])
    assert slopes == pytest.approx([0.0, -1.5, 0.0])
    assert clipped == [True, False, True]


def test_a_sequence_that_drifted_from_the_engine_is_masked_when_asked():
    loss = TrainConfig(loss_fn="importance_sampling", mask_sequence_ratio=1.5).loss
    # geometric means sqrt(2 * 1/2) = 1, sqrt(4 * 1) = 2 and sqrt(1/4 * 1) = 1/2
    ratios, sequences = [2.0, 0.5, 4.0, 1.0, 0.25, 1.0], [0, 0, 1, 1, 2, 2]
    _, slopes, clipped = loss_and_slopes(loss, ratios, [1.0] * 6, sequences=sequences)
    assert slopes == pytest.approx([-2.0, -0.5, 0.0, 0.0, 0.0, 0.0])
    assert clipped == [False, False, True, True, True, True]


def test_kimis_tau_lowers_the_advantage_of_tokens_that_became_likelier():
    loss = TrainConfig(loss_fn="importance_sampling", kimi_k2_tau=0.5).loss
    _, slopes, _ = loss_and_slopes(loss, [1.5, 0.5], [1.0, 1.0])
    assert slopes == pytest.approx(
        [-1.5 * (1 - 0.5 * math.log(1.5)), -0.5 * (1 + 0.5 * math.log(2))]
    )


def test_the_engines_mismatch_multiplies_once_and_is_not_squared():
    loss = loss_preset("importance_sampling")
    # policy / old = 1.25; old / engine = 1.5, and 4 truncated to 2
    engine = [-math.log(1.5), -math.log(4)]
    _, slopes, _ = loss_and_slopes(loss, [1.25, 1.25], [1.0, 1.0], engine=engine)
    assert slopes == pytest.approx([-1.25 * 1.5, -1.25 * 2.0])


def test_the_engines_mismatch_is_not_applied_again_to_a_ratio_that_holds_it():
    _, slopes, _ = loss_and_slopes(loss_preset("importance_sampling"), [1.5], [1.0])
    assert slopes == pytest.approx([-1.5])  # 1.5 squared would be 2.25


@pytest.mark.parametrize("level", ["token", "sequence", "average", "geometric_average"])
@pytest.mark.parametrize("preset", PRESETS.values(), ids=list(PRESETS))
@pytest.mark.parametrize("old", [-math.inf, math.inf, math.nan, -1e30, 1e30])
def test_losses_and_gradients_are_finite_whatever_the_engine_reported(preset, old, level):
    loss = attrs.evolve(preset, importance_sampling_level=level, mask_sequence_ratio=2.0)
    for olds, engine in (([old, old], None), ([-2.0, -2.0], [old, old])):
        logprobs = torch.tensor([-2.0, -2.0], requires_grad=True)
        found = losses_of(loss, logprobs, olds, [1.0, -1.0], engine=engine)
        found.losses_R.sum().backward()
        assert found.losses_R.isfinite().all()
        assert logprobs.grad.isfinite().all()
        assert all(math.isfinite(value) for value in ratio_metrics([found]).values())


def test_a_log_prob_that_the_engine_did_not_have_counts_as_on_policy():
    ratios = log_ratios(torch.tensor([-2.0]), torch.tensor([math.nan]))
    assert ratios.tolist() == [0.0]


def test_log_ratios_are_clamped():
    ratios = log_ratios(torch.tensor([0.0, -90.0]), torch.tensor([-90.0, 0.0]))
    assert ratios.tolist() == [MAX_LOG_RATIO, -MAX_LOG_RATIO]


def test_ratio_metrics_count_each_token_once():
    parts = [
        losses_of(CISPO, with_ratios(*ratios), torch.zeros(len(ratios)), torch.ones(len(ratios)))
        for ratios in ((1.0, 2.0), (6.0,))
    ]
    metrics = ratio_metrics(parts)
    assert metrics["loss/importance_ratio_mean"] == pytest.approx(3.0)
    assert metrics["loss/importance_ratio_p95"] == pytest.approx(2 + 0.9 * 4)
    assert metrics["loss/importance_ratio_p99"] == pytest.approx(2 + 0.98 * 4)
    assert metrics["loss/clipped_token_fraction"] == pytest.approx(1 / 3)
    k3 = [0, 1 - math.log(2), 5 - math.log(6)]
    assert metrics["loss/kl_k3"] == pytest.approx(sum(k3) / 3)


def test_metrics_tell_the_ratios_of_the_loss_and_the_tokens_divergence_from_the_engine():
    loss = loss_preset("gspo")
    found = losses_of(loss, with_ratios(2.0, 8.0), [0.0, 0.0], [1.0, 1.0])
    metrics = ratio_metrics([found])
    assert metrics["loss/importance_ratio_mean"] == pytest.approx(4.0)
    assert metrics["loss/clipped_token_fraction"] == 1.0
    k3 = [1 - math.log(2), 7 - math.log(8)]
    assert metrics["loss/kl_k3"] == pytest.approx(sum(k3) / 2, rel=1e-5)


def own(function, **options):
    return TrainConfig(loss_fn=LossSpec(name="mine", create=lambda: function), **options).loss


def test_a_loss_of_your_own_gets_tensors_and_returns_the_loss_of_each_token():
    def mine(tokens):
        assert tokens.ratios_R.tolist() == pytest.approx([4.0, 4.0])  # sqrt(2 * 8)
        assert tokens.log_ratios_R.tolist() == pytest.approx([math.log(2), math.log(8)])
        assert tokens.old_logprobs_R.tolist() == [0.0, 0.0]
        assert (tokens.sequences_R.tolist(), tokens.weights_R.tolist()) == ([0, 0], [1.0, 1.0])
        return -tokens.ratios_R * tokens.advantages_R

    loss = own(mine, importance_sampling_level="sequence")
    losses, slopes, _ = loss_and_slopes(loss, [2.0, 8.0], [1.0, 1.0])
    assert losses == pytest.approx([-4.0, -4.0])
    assert slopes == pytest.approx([-4.0, -4.0])


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (
            lambda t: t.logprobs_R.mean(),
            r"shape \[2\] with gradient, got shape \[\].*not their mean",
        ),
        (lambda t: t.advantages_R, "requires_grad=False"),
        (lambda t: [1.0, 2.0], r"got \[1.0, 2.0\]"),
    ],
)
def test_a_loss_of_your_own_that_returns_something_else_is_told(function, problem):
    with pytest.raises(ConfigError, match=f"loss 'mine' must return a tensor of .*{problem}"):
        losses_of(own(function), with_ratios(1.0, 1.0), [0.0, 0.0], [1.0, 1.0])


def test_a_loss_of_your_own_that_is_no_function_is_told():
    with pytest.raises(ConfigError, match="loss 'mine' is no function: 3"):
        loss_function(own(3))
