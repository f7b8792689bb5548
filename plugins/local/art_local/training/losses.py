"""Third stop: from log-probs to a loss, token by token, and what it says about the step."""

from __future__ import annotations

from collections.abc import Iterable

import attrs
import torch
from torch import Tensor

from art_core.rl.presets import LossPreset

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to this size, so that no ratio and no gradient overflows."""


@attrs.frozen(kw_only=True, eq=False)
class TokenLosses:
    """Loss [R] of each token before weighting, with its log importance ratio [R] (clamped,
    detached).
    """

    losses_R: Tensor
    log_ratios_R: Tensor


def log_ratios(logprobs_R: Tensor, old_logprobs_R: Tensor) -> Tensor:
    """Return log(new / old) [R], finite for every input.

    A log-prob that the engine did not really have (-inf, +inf, NaN) counts as on-policy: ratio 1.
    """
    known_R = torch.where(old_logprobs_R.isfinite(), old_logprobs_R, logprobs_R.detach())
    return (logprobs_R - known_R).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def token_losses(
    preset: LossPreset, logprobs_R: Tensor, old_logprobs_R: Tensor, advantages_R: Tensor
) -> TokenLosses:
    """Loss of each token under a preset (formulas and sources: `LossPreset`)."""
    log_ratios_R = log_ratios(logprobs_R, old_logprobs_R)
    ratios_R = log_ratios_R.exp()
    clipped_R = ratios_R.clamp(1 - preset.epsilon, 1 + preset.epsilon_high)
    if preset.surrogate == "weight":
        losses_R = -clipped_R.detach() * advantages_R * logprobs_R
    else:
        losses_R = -torch.minimum(ratios_R * advantages_R, clipped_R * advantages_R)
    return TokenLosses(losses_R=losses_R, log_ratios_R=log_ratios_R.detach())


def ratio_metrics(log_ratios: Iterable[Tensor], preset: LossPreset) -> dict[str, float]:
    """Importance-ratio metrics over all tokens of a step, each token counted once.

    `loss/kl_k3` estimates KL(engine || trainer), sampled from the engine, as r - 1 - log r
    (Schulman, "Approximating KL divergence", 2020).
    """
    log_ratios_N = torch.cat([r.float().cpu() for r in log_ratios]).double()
    ratios_N = log_ratios_N.exp()
    clipped_N = (ratios_N < 1 - preset.epsilon) | (ratios_N > 1 + preset.epsilon_high)
    sorted_N = ratios_N.sort().values
    return {
        "loss/importance_ratio_mean": float(ratios_N.mean()),
        "loss/importance_ratio_p95": _percentile(sorted_N, 0.95),
        "loss/importance_ratio_p99": _percentile(sorted_N, 0.99),
        "loss/clipped_token_fraction": float(clipped_N.double().mean()),
        "loss/kl_k3": float((ratios_N - 1 - log_ratios_N).mean()),
    }


def _percentile(sorted_N: Tensor, share: float) -> float:
    # torch.quantile refuses more than 16 M values
    position = share * (len(sorted_N) - 1)
    low = int(position)
    high = min(low + 1, len(sorted_N) - 1)
    return float(sorted_N[low] + (position - low) * (sorted_N[high] - sorted_N[low]))
