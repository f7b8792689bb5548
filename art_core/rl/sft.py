"""Supervised fine-tuning: its loss, its options, and conversations as training sequences."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import attrs

from art_core.base.errors import ConfigError, unknown
from art_core.data.trajectory import ChoiceTokens, History, Trajectory
from art_core.rl.config import TrainConfig
from art_core.rl.losses import LossPreset
from art_core.rl.sequences import TokenSequence, merge_turns

log = logging.getLogger("art_core")

CROSS_ENTROPY = LossPreset(
    name="cross_entropy",
    surrogate="likelihood",
    normalization="token",
    source="maximum likelihood: -log p of each trained token, mean over the tokens of a batch",
)
SFT_OPTIONS = (
    "learning_rate", "logprob_calculation_chunk_size", "max_grad_norm", "micro_batch_tokens",
    "optimizer", "packed_sequence_length", "packing", "save_checkpoint", "weight_decay",
)  # fmt: skip
"""The options of `TrainConfig` that a step of supervised fine-tuning has."""
DEFAULT_LEARNING_RATE = 1e-4

Turns = Callable[[History], Sequence[ChoiceTokens]]
"""Returns the turns of a conversation that are trained: prompt and answer of each, in tokens."""


def sft_config(**options: Any) -> TrainConfig:
    """Return the config of a step; ConfigError for an unknown option or an invalid value."""
    for name in options:
        if name not in SFT_OPTIONS:
            raise ConfigError(unknown("train_sft option", name, SFT_OPTIONS))
    return TrainConfig(loss_fn=CROSS_ENTROPY, **{"learning_rate": DEFAULT_LEARNING_RATE, **options})


def sft_sequences(example: Trajectory, turns: Turns) -> list[TokenSequence]:
    """Return the sequences of an example: those of each of its conversations.

    Their log-probs are NaN: no engine sampled them.
    """
    merged = [merge_turns(turns(history)) for history in example.histories()]
    found = [_from_second(s) for each in merged for s in each.sequences]
    return [s for s in found if s.num_trainable]


def _from_second(sequence: TokenSequence) -> TokenSequence:
    """Return a sequence whose first token is not trained, since nothing predicts it."""
    return attrs.evolve(sequence, trainable=(False, *sequence.trainable[1:]))


def sft_batches(
    batches: Iterable[Iterable[Trajectory]], turns: Turns
) -> tuple[list[list[TokenSequence]], dict[str, float]]:
    """Return the sequences of each batch that has some, and the metrics of what went in."""
    counted = [[sft_sequences(example, turns) for example in batch] for batch in batches]
    found = [[s for example in batch for s in example] for batch in counted]
    everything = [s for batch in found for s in batch]
    metrics = {
        "data/step_num_examples": float(sum(map(len, counted))),
        "data/step_num_sequences": float(len(everything)),
        "data/step_trainer_tokens": float(sum(s.num_trainable for s in everything)),
    }
    if not everything:
        log.warning("nothing to train on: no example has a trained token. The step advances.")
    return [batch for batch in found if batch], metrics


@attrs.frozen(kw_only=True)
class ExampleSize:
    """The tokens of an example, how many of them are trained, and why it can't be trained, if so.

    A token that two sequences of the example share is counted in both.
    """

    tokens: int = 0
    trained: int = 0
    problem: str = ""


def example_size(example: Trajectory, turns: Turns) -> ExampleSize:
    """Return the size of an example, or the reason why it can't be trained."""
    try:
        sequences = sft_sequences(example, turns)
    except ConfigError as error:
        return ExampleSize(problem=str(error))
    trained = sum(s.num_trainable for s in sequences)
    tokens = sum(len(s.token_ids) for s in sequences)
    problem = "" if trained else "it has no assistant message to train on"
    return ExampleSize(tokens=tokens, trained=trained, problem=problem)
