"""How much a token counts: the weight of a sequence's tokens, and what their sum is divided by."""

from __future__ import annotations

from collections.abc import Iterable

from art_core.rl.presets import LossPreset
from art_core.rl.sequences import TokenSequence


def token_weight(loss: LossPreset, *, of_sequence: int, of_trajectory: int) -> float:
    """Weight of each token of a sequence, by how many tokens bear loss in it and in its trajectory
    (see `LossPreset.normalization`).
    """
    return {
        "trajectory": 1 / of_trajectory,
        "sequence": 1 / of_sequence,
        "token": 1.0,
        "constant": 1 / loss.normalization_length,
    }[loss.normalization]


def window_total(loss: LossPreset, sequences: Iterable[TokenSequence]) -> float:
    """What the weighted sum of token losses is divided by, over all sequences of one optimizer
    step: the number of trajectories, sequences, tokens, or sequences again.
    """
    if loss.normalization == "constant":
        return float(sum(1 for _ in sequences))
    return sum(s.weight * s.num_trainable for s in sequences)
