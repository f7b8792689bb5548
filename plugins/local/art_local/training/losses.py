"""The loss of each token, from log-probs, and its metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import attrs
import torch
from torch import Tensor

from art_core.base.errors import ConfigError
from art_core.rl.config import TrainConfig
from art_core.rl.losses import LossFunction, LossPreset, LossTokens
from art_core.rl.sequences import TokenSequence

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to this size, so that no ratio and no gradient overflows."""


@attrs.frozen(kw_only=True, eq=False)
class Tokens:
    """The inputs of a loss, [R] each: log-probs with gradient, old log-probs (any float),
    advantages, weights, indices of sequences, entropies.

    `engine_logprobs_R` are given if the old log-probs are the policy's own.
    """

    logprobs_R: Tensor
    old_logprobs_R: Tensor
    advantages_R: Tensor
    weights_R: Tensor
    sequences_R: Tensor
    entropies_R: Tensor
    engine_logprobs_R: Tensor | None = None


@attrs.frozen(kw_only=True, eq=False)
class TokenLosses:
    """Loss [R] of each token before weighting. For the metrics, detached: the importance ratio [R]
    at the loss's level, whether it was clipped or masked [R], and log(policy / engine) [R].
    """

    losses_R: Tensor
    ratios_R: Tensor
    clipped_R: Tensor
    engine_log_ratios_R: Tensor


def token_losses(
    loss: LossPreset, tokens: Tokens, function: LossFunction | None = None
) -> TokenLosses:
    """Return the loss of each token (formulas and sources: `LossPreset`). `function` is the loss
    function that `loss.spec` created.
    """
    if loss.surrogate == "likelihood":
        return _likelihood(tokens)
    log_ratios_R = log_ratios(tokens.logprobs_R, tokens.old_logprobs_R)
    engine_log_ratios_R, factor_R = log_ratios_R.detach(), None
    if tokens.engine_logprobs_R is not None:
        engine_log_ratios_R, factor_R = _mismatch(
            loss, tokens.old_logprobs_R, tokens.engine_logprobs_R
        )
    level = loss.importance_sampling_level
    ratios_R = ratios_at_level(log_ratios_R, tokens.sequences_R, level)
    capped_R = ratios_R if loss.ratio_cap == math.inf else ratios_R.clamp(max=loss.ratio_cap)
    if loss.surrogate == "function":
        losses_R = _of_function(loss, tokens, log_ratios_R, capped_R, function)
        clipped_R = (capped_R < ratios_R).detach()
    else:
        losses_R, clipped_R = _surrogate(loss, tokens, log_ratios_R, ratios_R, capped_R)
    unmasked_R = _unmasked(loss, ratios_R, engine_log_ratios_R, tokens.sequences_R)
    if unmasked_R is not None:
        losses_R, clipped_R = torch.where(unmasked_R, losses_R, 0.0), clipped_R | ~unmasked_R
    if factor_R is not None:
        losses_R = losses_R * factor_R
    return TokenLosses(
        losses_R=losses_R,
        ratios_R=ratios_R.detach(),
        clipped_R=clipped_R,
        engine_log_ratios_R=engine_log_ratios_R,
    )


def _likelihood(tokens: Tokens) -> TokenLosses:
    none_R = torch.zeros_like(tokens.logprobs_R, requires_grad=False)
    return TokenLosses(
        losses_R=-tokens.logprobs_R,
        ratios_R=none_R + 1,
        clipped_R=none_R.bool(),
        engine_log_ratios_R=none_R,
    )


def _surrogate(
    loss: LossPreset, tokens: Tokens, log_ratios_R: Tensor, ratios_R: Tensor, capped_R: Tensor
) -> tuple[Tensor, Tensor]:
    advantages_R = tokens.advantages_R
    if loss.kimi_k2_tau:
        advantages_R = advantages_R - loss.kimi_k2_tau * log_ratios_R.detach()
    negative_cap = loss.max_negative_advantage_importance_sampling_weight
    if negative_cap < math.inf:
        capped_R = torch.where(advantages_R < 0, capped_R.clamp(max=negative_cap), capped_R)
    inside_R = capped_R.clamp(1 - loss.epsilon, 1 + loss.epsilon_high)
    if loss.surrogate == "weight":
        weights_R = inside_R.detach()
        return -weights_R * advantages_R * tokens.logprobs_R, weights_R != ratios_R.detach()
    free_R, bound_R = capped_R * advantages_R, inside_R * advantages_R
    losses_R = -torch.minimum(free_R, bound_R)
    # if the clip or a cap applies, there is no gradient
    clipped_R = ((bound_R < free_R) | (capped_R < ratios_R)).detach()
    return losses_R, clipped_R


def _of_function(
    loss: LossPreset,
    tokens: Tokens,
    log_ratios_R: Tensor,
    ratios_R: Tensor,
    function: LossFunction | None,
) -> Tensor:
    assert function is not None
    losses_R = function(
        LossTokens(
            logprobs_R=tokens.logprobs_R,
            old_logprobs_R=_known(tokens.old_logprobs_R, tokens.logprobs_R),
            log_ratios_R=log_ratios_R,
            ratios_R=ratios_R,
            advantages_R=tokens.advantages_R,
            weights_R=tokens.weights_R,
            sequences_R=tokens.sequences_R,
            entropies_R=tokens.entropies_R,
        )
    )
    wanted = f"a tensor of shape {list(tokens.logprobs_R.shape)} with gradient"
    if not isinstance(losses_R, Tensor):
        raise ConfigError(f"loss {loss.name!r} must return {wanted}, got {losses_R!r:.80}")
    if losses_R.shape != tokens.logprobs_R.shape or not losses_R.requires_grad:
        found = f"shape {list(losses_R.shape)}, requires_grad={losses_R.requires_grad}"
        raise ConfigError(
            f"loss {loss.name!r} must return {wanted}, got {found}",
            "Return one value per token, not their mean, computed from logprobs_R or ratios_R.",
        )
    return losses_R


def _known(old_logprobs_R: Tensor, logprobs_R: Tensor) -> Tensor:
    """Return the old log-probs [R]. One that is -inf, +inf or NaN is replaced by the policy's own,
    so that its token counts as on-policy.
    """
    return torch.where(old_logprobs_R.isfinite(), old_logprobs_R, logprobs_R.detach())


def log_ratios(logprobs_R: Tensor, old_logprobs_R: Tensor) -> Tensor:
    """Return log(new / old) [R], finite for every input and at most `MAX_LOG_RATIO` in size."""
    known_R = _known(old_logprobs_R, logprobs_R)
    return (logprobs_R - known_R).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def _sequence_means(values_R: Tensor, sequences_R: Tensor) -> Tensor:
    """Return for each token [R] the mean of the values of its sequence's tokens."""
    _, owner_R, counts_B = sequences_R.unique(return_inverse=True, return_counts=True)
    sums_B = values_R.new_zeros(len(counts_B)).index_add(0, owner_R, values_R)
    return (sums_B / counts_B)[owner_R]


def ratios_at_level(log_ratios_R: Tensor, sequences_R: Tensor, level: str) -> Tensor:
    """Return importance ratios [R] at a level (see `LossPreset`)."""
    ratios_R = log_ratios_R.exp()
    if level == "token":
        return ratios_R
    means_R = _sequence_means(log_ratios_R, sequences_R)
    if level == "sequence":
        return means_R.exp()
    if level == "average":
        return (ratios_R + means_R.exp()) / 2
    return ((log_ratios_R + means_R) / 2).exp()


def _mismatch(
    loss: LossPreset, old_logprobs_R: Tensor, engine_logprobs_R: Tensor
) -> tuple[Tensor, Tensor]:
    """Return log(old / engine) [R] and the truncated ratio [R] that multiplies the loss, if the
    old log-probs are the policy's own.

    Truncated importance sampling: min(old / engine, cap), not squared, without gradient.
    """
    log_ratios_R = log_ratios(old_logprobs_R, engine_logprobs_R).detach()
    return log_ratios_R, log_ratios_R.exp().clamp(max=loss.truncated_importance_sampling)


def _unmasked(
    loss: LossPreset, ratios_R: Tensor, engine_log_ratios_R: Tensor, sequences_R: Tensor
) -> Tensor | None:
    """Return the tokens [R] that the masks do not exclude; None without a mask."""
    unmasked_R = None
    if loss.mask_prob_ratio:
        unmasked_R = (ratios_R > 1 - loss.epsilon) & (ratios_R < 1 + loss.epsilon_high)
    if loss.mask_sequence_ratio < math.inf:
        means_R = _sequence_means(engine_log_ratios_R, sequences_R)
        near_R = means_R.abs() <= math.log(loss.mask_sequence_ratio)
        unmasked_R = near_R if unmasked_R is None else unmasked_R & near_R
    return unmasked_R


def loss_function(loss: LossPreset) -> LossFunction | None:
    """Import the function of a custom loss; None for a preset. ConfigError if not callable."""
    if loss.spec is None:
        return None
    function = loss.spec.create()
    if not callable(function):
        raise ConfigError(f"loss {loss.name!r} is no function: {function!r:.80}")
    return function


def entropy_coefficient(config: TrainConfig, sequences: Iterable[TokenSequence]) -> float:
    """Return the coefficient of a step's entropy bonus: 0 where `entropy_target` is reached.

    -log p of the sampled tokens, as the engine reported it, estimates the entropy without bias. It
    depends on the sequences only, so a step that is repeated has the same coefficient.
    """
    if config.entropy_target is None or not config.entropy_coef:
        return config.entropy_coef
    found = [
        -logprob
        for s in sequences
        for logprob, trainable in zip(s.logprobs[1:], s.trainable[1:], strict=True)
        if trainable and math.isfinite(logprob)
    ]
    entropy = math.fsum(found) / len(found) if found else 0.0
    return config.entropy_coef if entropy < config.entropy_target else 0.0


def ratio_metrics(parts: Sequence[TokenLosses]) -> dict[str, float]:
    """Return importance-ratio metrics over all tokens of a step, each token counted once.

    The ratios are those in the loss. `loss/kl_k3` estimates KL(engine || trainer), sampled
    from the engine, token by token at every level, as r - 1 - log r (Schulman, "Approximating KL
    divergence", 2020).
    """
    sorted_N = torch.cat([part.ratios_R.float().cpu() for part in parts]).double().sort().values
    clipped_N = torch.cat([part.clipped_R.cpu() for part in parts])
    log_ratios_N = torch.cat([part.engine_log_ratios_R.float().cpu() for part in parts]).double()
    weights_N = log_ratios_N.exp()
    return {
        "loss/importance_ratio_mean": float(sorted_N.mean()),
        "loss/importance_ratio_p95": _percentile(sorted_N, 0.95),
        "loss/importance_ratio_p99": _percentile(sorted_N, 0.99),
        "loss/effective_sample_size": float(weights_N.mean().square() / weights_N.square().mean()),
        "loss/clipped_token_fraction": float(clipped_N.double().mean()),
        "loss/kl_k3": float((log_ratios_N.expm1() - log_ratios_N).mean()),
        "loss/engine_logprob_diff": float(log_ratios_N.abs().mean()),
    }


def _percentile(sorted_N: Tensor, share: float) -> float:
    # torch.quantile is limited to 16 M values
    position = share * (len(sorted_N) - 1)
    low = int(position)
    high = min(low + 1, len(sorted_N) - 1)
    return float(sorted_N[low] + (position - low) * (sorted_N[high] - sorted_N[low]))
