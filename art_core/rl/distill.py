"""On-policy distillation: a teacher's log-probs of the sampled tokens become advantages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import attrs

from art_core.base.errors import ConfigError
from art_core.rl.sequences import TokenSequence

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to this size: a token that the teacher excludes has log-prob -inf."""


def distilled(sequence: TokenSequence, coefficient: float) -> TokenSequence:
    """Add coefficient * log(teacher / policy) to the advantage of each sampled token.

    In the mean over samples, a policy gradient with these advantages is the negative gradient of
    the reverse KL divergence KL(policy || teacher) at each token (GKD, arXiv 2306.13649, section
    3; Thinking Machines, "On-Policy Distillation", 2025). `policy` are the engine's log-probs.
    ConfigError for a sequence without a teacher's log-probs.
    """
    if sequence.teacher_logprobs is None:
        raise ConfigError(
            "the loss needs a teacher's log-probs, and a choice to train on has none",
            "Give model.train(groups, teacher=...), with a teacher made by art.teacher(...).",
        )
    advantages = tuple(
        own + coefficient * ratio if trainable else 0.0
        for own, ratio, trainable in zip(
            sequence.advantages, _log_ratios(sequence), sequence.trainable, strict=True
        )
    )
    return attrs.evolve(
        sequence,
        advantage=math.fsum(advantages) / max(1, sequence.num_trainable),
        token_advantages=advantages,
    )


def teacher_kl(sequences: Iterable[TokenSequence]) -> float:
    """Return the mean of log(policy / teacher) over all sampled tokens, in nats: an unbiased
    estimate of KL(policy || teacher); 0 without tokens.
    """
    found = [
        -ratio
        for sequence in sequences
        for ratio, trainable in zip(_log_ratios(sequence), sequence.trainable, strict=True)
        if trainable
    ]
    return math.fsum(found) / len(found) if found else 0.0


def _log_ratios(sequence: TokenSequence) -> Iterator[float]:
    """Yield log(teacher / policy) of each token, clamped; 0 where the policy's is not known."""
    for teacher, policy in zip(sequence.teacher_logprobs or (), sequence.logprobs, strict=True):
        if not math.isfinite(policy) or math.isnan(teacher):
            yield 0.0
        else:
            yield max(-MAX_LOG_RATIO, min(teacher - policy, MAX_LOG_RATIO))
