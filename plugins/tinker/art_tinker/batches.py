"""Training sequences as the service's data: targets shifted by one, advantages normalized.

The service sums the losses of all tokens. These losses are linear in the advantages, so the divisor
of the sum (`LossPreset.normalization`) is applied to the advantages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import attrs

from art_core import ConfigError, TrainConfig
from art_core.rl.batch import optimizer_steps, window_total
from art_core.rl.losses import LossPreset
from art_core.rl.sequences import TokenSequence
from art_core.rl.sft import CROSS_ENTROPY
from art_tinker.sdk import tinker

LOSSES = ("cispo", "distill", "importance_sampling", "ppo")
_UNSUPPORTED = {
    "kimi_k2_tau": 0.0,
    "mask_prob_ratio": False,
    "mask_sequence_ratio": math.inf,
    "max_negative_advantage_importance_sampling_weight": math.inf,
    "importance_sampling_level": "token",
}


@attrs.frozen(kw_only=True)
class ServiceLoss:
    """A loss of the service. The ratio r = exp(logp - old logp) is clipped to [`low`, `high`]."""

    name: str
    low: float = 0.0
    high: float = math.inf

    @property
    def supervised(self) -> bool:
        """Whether it is the loss of supervised fine-tuning."""
        return self.name == CROSS_ENTROPY.name

    @property
    def config(self) -> dict[str, float] | None:
        """The loss's parameters at the service."""
        if self.name == "importance_sampling" or self.supervised:
            return None
        return {"clip_low_threshold": self.low, "clip_high_threshold": self.high}


def service_loss(config: TrainConfig) -> ServiceLoss:
    """Return a loss in the service's form; ConfigError for unsupported losses and parameters.

    `distill` and `importance_sampling` with a cap c have the gradient of the service's cispo over
    [0, c]: min(r, c) * A * grad logp. Without a cap it is the service's loss importance_sampling.
    """
    loss = config.loss
    _check(loss, config)
    if loss.name == CROSS_ENTROPY.name:
        return ServiceLoss(name=CROSS_ENTROPY.name)
    if loss.name == "ppo":
        return ServiceLoss(name="ppo", low=1 - loss.epsilon, high=1 + loss.epsilon_high)
    low, high = max(1 - loss.epsilon, 0.0), min(1 + loss.epsilon_high, loss.ratio_cap)
    if high == math.inf:
        return ServiceLoss(name="importance_sampling")
    return ServiceLoss(name="cispo", low=low, high=high)


def _check(loss: LossPreset, config: TrainConfig) -> None:
    if loss.name not in (*LOSSES, CROSS_ENTROPY.name):
        raise ConfigError(
            f"backend 'tinker' has no loss {loss.name!r}; it has: {', '.join(LOSSES)}"
        )
    refused = [name for name, value in _UNSUPPORTED.items() if getattr(loss, name) != value]
    refused += [name for name in ("kl_penalty_coef", "entropy_coef") if getattr(config, name)]
    if config.optimizer != "adamw":
        refused.append(f"optimizer={config.optimizer!r}")
    if loss.name == "ppo" and config.truncated_importance_sampling is not None:
        refused.append("truncated_importance_sampling")
    if refused:
        raise ConfigError(
            f"backend 'tinker' can't train {loss.name!r} with {', '.join(refused)}",
            "Leave them out, or train with a backend that computes losses itself.",
        )


@attrs.frozen(kw_only=True, eq=False)
class Minibatch:
    """The sequences of one optimizer step, and their data for the service."""

    data: list[Any]
    sequences: tuple[TokenSequence, ...]
    total: float

    @property
    def tokens(self) -> int:
        """The number of tokens that the service computes: all but the last of each sequence."""
        return sum(len(sequence.token_ids) - 1 for sequence in self.sequences)


def windows_of(sequences: Sequence[TokenSequence], config: TrainConfig) -> list[Minibatch]:
    """Return the minibatch of each optimizer step of a training step; by default there is one."""
    steps = optimizer_steps(sequences, config.grad_accumulation_sequences)
    return [_minibatch(tuple(step), config.loss) for step in steps]


def sft_windows(batches: Sequence[Sequence[TokenSequence]], config: TrainConfig) -> list[Minibatch]:
    """Return the minibatch of each batch of supervised fine-tuning."""
    return [_minibatch(tuple(batch), config.loss) for batch in batches]


def _minibatch(sequences: tuple[TokenSequence, ...], loss: LossPreset) -> Minibatch:
    total = window_total(loss, sequences)
    made = sft_datum if loss.name == CROSS_ENTROPY.name else datum
    data = [made(sequence, total) for sequence in sequences]
    return Minibatch(data=data, sequences=sequences, total=total)


def datum(sequence: TokenSequence, total: float) -> Any:
    """Return one sequence of T tokens as T - 1 inputs, each with its next token as the target.

    Each advantage is that of the target, times the weight of a token, divided by the minibatch's
    total; 0 if the target does not bear loss.
    """
    share = sequence.weight / total
    bears = zip(sequence.advantages[1:], sequence.trainable[1:], strict=True)
    return _datum(
        sequence,
        logprobs=[_finite(p) for p in sequence.logprobs[1:]],
        advantages=[advantage * share if trained else 0.0 for advantage, trained in bears],
    )


def sft_datum(sequence: TokenSequence, total: float) -> Any:
    """Return one sequence for cross entropy: each target that bears loss weighs 1 / `total`."""
    share = sequence.weight / total
    return _datum(sequence, weights=[share * trained for trained in sequence.trainable[1:]])


def _datum(sequence: TokenSequence, **values: list[float]) -> Any:
    types = tinker().types
    targets = list(sequence.token_ids[1:])
    shape = [len(targets)]
    inputs = {"target_tokens": types.TensorData(data=targets, dtype="int64", shape=shape)}
    for name, numbers in values.items():
        inputs[name] = types.TensorData(data=numbers, dtype="float32", shape=shape)
    return types.Datum(
        model_input=types.ModelInput.from_ints(list(sequence.token_ids[:-1])),
        loss_fn_inputs=inputs,
    )


def _finite(logprob: float) -> float:
    """Return a finite log-prob: a probability of 0 would make the ratio infinite."""
    return max(logprob, -100.0)
