"""Third stop: importance ratios, of a token or a whole sequence, finite for every input."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from art_core.rl.presets import LossPreset

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to this size, so that no ratio and no gradient overflows."""


def known(old_logprobs_R: Tensor, logprobs_R: Tensor) -> Tensor:
    """Return the old log-probs [R], and where one is -inf, +inf or NaN, which no engine can have
    meant, the policy's own: such a token counts as on-policy.
    """
    return torch.where(old_logprobs_R.isfinite(), old_logprobs_R, logprobs_R.detach())


def log_ratios(logprobs_R: Tensor, old_logprobs_R: Tensor) -> Tensor:
    """Return log(new / old) [R], finite for every input and at most `MAX_LOG_RATIO` in size."""
    known_R = known(old_logprobs_R, logprobs_R)
    return (logprobs_R - known_R).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def sequence_means(values_R: Tensor, sequences_R: Tensor) -> Tensor:
    """Return for each token [R] the mean of the values of its sequence's tokens."""
    _, owner_R, counts_B = sequences_R.unique(return_inverse=True, return_counts=True)
    sums_B = values_R.new_zeros(len(counts_B)).index_add(0, owner_R, values_R)
    return (sums_B / counts_B)[owner_R]


def ratios_at_level(log_ratios_R: Tensor, sequences_R: Tensor, level: str) -> Tensor:
    """Return importance ratios [R] at a level (see `LossPreset`)."""
    ratios_R = log_ratios_R.exp()
    if level == "token":
        return ratios_R
    means_R = sequence_means(log_ratios_R, sequences_R)
    if level == "sequence":
        return means_R.exp()
    if level == "average":
        return (ratios_R + means_R.exp()) / 2
    return ((log_ratios_R + means_R) / 2).exp()


def mismatch(
    loss: LossPreset, old_logprobs_R: Tensor, engine_logprobs_R: Tensor
) -> tuple[Tensor, Tensor]:
    """Return log(old / engine) [R] and the truncated ratio [R] that multiplies the loss, when old
    log-probs are the policy's own.

    Truncated importance sampling: min(old / engine, cap), not squared, without gradient.
    """
    log_ratios_R = log_ratios(old_logprobs_R, engine_logprobs_R).detach()
    return log_ratios_R, log_ratios_R.exp().clamp(max=loss.truncated_importance_sampling)


def kept(
    loss: LossPreset, ratios_R: Tensor, engine_log_ratios_R: Tensor, sequences_R: Tensor
) -> Tensor | None:
    """Return which tokens [R] the masks leave in, or None when no mask is on."""
    kept_R = None
    if loss.mask_prob_ratio:
        kept_R = (ratios_R > 1 - loss.epsilon) & (ratios_R < 1 + loss.epsilon_high)
    if loss.mask_sequence_ratio < math.inf:
        means_R = sequence_means(engine_log_ratios_R, sequences_R)
        near_R = means_R.abs() <= math.log(loss.mask_sequence_ratio)
        kept_R = near_R if kept_R is None else kept_R & near_R
    return kept_R
