"""Metrics of a training step, computed from the log-probs of the service."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from art_tinker.batches import Minibatch, ServiceLoss

Floats = npt.NDArray[np.float64]
_CLAMP = 20.0


def loss_metrics(
    loss: ServiceLoss, batches: Sequence[Minibatch], logprobs: Sequence[Sequence[Floats]]
) -> dict[str, float]:
    """Return the loss, normalized as in other backends, and statistics of the importance ratios.

    `logprobs` are the trainer's: for each minibatch and datum, one for each target. `loss/kl_k3` is
    the mean of r - 1 - log r.
    """
    if loss.supervised:
        pairs = zip(batches, logprobs, strict=True)
        return {"loss/train": float(np.mean([_entropy(batch, found) for batch, found in pairs]))}
    losses: list[float] = []
    ratios: list[Floats] = []
    for batch, found in zip(batches, logprobs, strict=True):
        of_batch, ratio = _minibatch(loss, batch, found)
        losses.append(of_batch)
        ratios.append(ratio)
    ratios_N = np.sort(np.concatenate(ratios))
    outside_N = (ratios_N < loss.low) | (ratios_N > loss.high)
    log_N = np.log(ratios_N)
    return {
        "loss/train": float(np.mean(losses)),
        "loss/importance_ratio_mean": float(ratios_N.mean()),
        "loss/importance_ratio_p95": float(np.quantile(ratios_N, 0.95)),
        "loss/importance_ratio_p99": float(np.quantile(ratios_N, 0.99)),
        "loss/effective_sample_size": float(ratios_N.mean() ** 2 / (ratios_N**2).mean()),
        "loss/clipped_token_fraction": float(outside_N.mean()),
        "loss/kl_k3": float((ratios_N - 1 - log_N).mean()),
        "loss/engine_logprob_diff": float(np.abs(log_N).mean()),
    }


def _entropy(batch: Minibatch, logprobs: Iterable[Floats]) -> float:
    """Return the cross entropy of a batch, the mean over its trained tokens."""
    pairs = zip(batch.sequences, logprobs, strict=True)
    sums = [float(np.asarray(found)[np.asarray(s.trainable[1:])].sum()) for s, found in pairs]
    return -sum(sums) / batch.total


def _minibatch(
    loss: ServiceLoss, batch: Minibatch, logprobs: Iterable[Floats]
) -> tuple[float, Floats]:
    summed, ratios = 0.0, []
    for sequence, found in zip(batch.sequences, logprobs, strict=True):
        bears = np.asarray(sequence.trainable[1:])
        new = np.asarray(found, dtype=np.float64)[bears]
        old = np.asarray(sequence.logprobs[1:], dtype=np.float64)[bears]
        advantages = np.asarray(sequence.advantages[1:], dtype=np.float64)[bears]
        ratio = np.exp(np.clip(new - old, -_CLAMP, _CLAMP))
        summed += sequence.weight * float(_losses(loss, ratio, new, advantages).sum())
        ratios.append(ratio)
    return summed / batch.total, np.concatenate(ratios)


def _losses(loss: ServiceLoss, ratio: Floats, logprobs: Floats, advantage: Floats) -> Floats:
    inside = np.clip(ratio, loss.low, loss.high)
    if loss.name == "ppo":
        return -np.minimum(ratio * advantage, inside * advantage)
    if loss.name == "cispo":
        return -inside * advantage * logprobs
    return -ratio * advantage
