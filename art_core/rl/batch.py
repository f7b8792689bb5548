"""From groups of trajectories to the rows of one training step, with what was left out and why."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence

import attrs

from art_core.data.trajectory import Trajectory, TrajectoryGroup
from art_core.errors import ConfigError
from art_core.rl.advantages import has_spread, step_advantages
from art_core.rl.config import TrainConfig
from art_core.rl.sequences import TokenSequence, merge_turns, turns_of
from art_core.rl.weights import token_weight

log = logging.getLogger("art_core")

_LARGEST = 3.4e38
"""About the largest number that the trainers' 32-bit floats hold."""


@attrs.frozen(kw_only=True)
class TrainingBatch:
    """Sequences of one step, advantages and weights on them, and `metrics` that say what went
    in.
    """

    sequences: tuple[TokenSequence, ...]
    metrics: dict[str, float]

    @property
    def empty(self) -> bool:
        """True when the step has nothing to learn from."""
        return not self.sequences


def training_batch(groups: Iterable[TrajectoryGroup], config: TrainConfig) -> TrainingBatch:
    """Turn groups into training sequences.

    Raises ConfigError when no choice has engine tokens, a reward is not a finite number, or an
    advantage is too large for a 32-bit float.
    """
    counts: Counter[str] = Counter()
    sequences: list[TokenSequence] = []
    groups = list(groups)
    for group, advantages in zip(groups, _advantages(groups, config), strict=True):
        if not has_spread(group.rewards):
            counts["flat_groups"] += 1
            continue
        for trajectory, advantage in zip(group.trajectories, advantages, strict=True):
            sequences += _sequences_of(trajectory, advantage, config, counts)
    _say_what_is_missing(groups, sequences, counts)
    return TrainingBatch(
        sequences=tuple(sequences),
        metrics={
            "data/step_trainer_tokens": float(sum(s.num_trainable for s in sequences)),
            "data/step_num_sequences": float(len(sequences)),
            "data/step_num_truncated": float(counts["truncated"]),
            "data/step_num_biased_choices": float(counts["biased"]),
            "data/prefix_breaks": float(counts["prefix_breaks"]),
        },
    )


def _advantages(groups: Sequence[TrajectoryGroup], config: TrainConfig) -> list[list[float]]:
    for group in groups:
        if not all(map(math.isfinite, group.rewards)):
            raise ConfigError(
                f"a group has rewards that are not finite: {group.rewards}",
                "Gathering sets such attempts aside: art.gather_trajectory_groups(groups).",
            )
    advantages = step_advantages(
        [group.rewards for group in groups],
        advantage_baseline=config.advantage_baseline,
        scale_rewards=config.scale_rewards,
        advantage_balance=config.advantage_balance,
    )
    for group, found in zip(groups, advantages, strict=True):
        if not all(abs(advantage) <= _LARGEST for advantage in found):
            raise ConfigError(
                f"rewards from {min(group.rewards):g} to {max(group.rewards):g} give advantages "
                "that no 32-bit float holds",
                'Give rewards of about 1, or train(..., scale_rewards="group").',
            )
    return advantages


def _sequences_of(
    trajectory: Trajectory, advantage: float, config: TrainConfig, counts: Counter[str]
) -> Sequence[TokenSequence]:
    found: list[TokenSequence] = []
    for history in trajectory.histories():
        turns, missing = turns_of(history)
        counts["choices"] += len(turns) + missing
        counts["conversations"] += bool(turns or missing)
        if missing:
            counts["without_tokens"] += missing
            counts["left_out"] += 1
            continue
        merged = merge_turns(turns)
        counts["prefix_breaks"] += merged.prefix_breaks
        if any(turn.truncated for turn in turns):
            counts["truncated"] += 1
            if config.mask_truncated:
                continue
        counts["biased"] += sum(turn.biased for turn in turns)
        found += [s for s in merged.sequences if s.num_trainable]
    of_trajectory = sum(s.num_trainable for s in found)
    loss = config.loss
    return [
        attrs.evolve(
            s,
            advantage=advantage,
            weight=token_weight(loss, of_sequence=s.num_trainable, of_trajectory=of_trajectory),
        )
        for s in found
    ]


def _say_what_is_missing(
    groups: Sequence[TrajectoryGroup], sequences: Sequence[TokenSequence], counts: Counter[str]
) -> None:
    remedy = (
        "Rollouts must call the model through model.openai_client(), which asks the endpoint "
        "for token ids, and append completion.choices[0] itself to the trajectory. What another "
        "client or a framework says, model.recording(trajectory) puts there."
    )
    missing = counts["without_tokens"]
    if missing and not sequences and missing == counts["choices"]:
        raise ConfigError(
            f"none of the {missing} choices carries engine token ids and log-probs", remedy
        )
    if missing:
        log.warning(
            "%d of %d choices carry no engine token ids and log-probs. A conversation is trained "
            "whole or not at all: %d of %d are left out. %s",
            missing,
            counts["choices"],
            counts["left_out"],
            counts["conversations"],
            remedy,
        )
    if counts["biased"]:
        log.warning(
            "%d trained choices were drawn at a temperature or top_p other than 1: their "
            "log-probs are not those of the draw, which biases the importance ratio. "
            "Sample what is trained at temperature=1 and top_p=1.",
            counts["biased"],
        )
    if not counts["choices"] and counts["flat_groups"] < len(groups):
        log.warning(
            "nothing to train on: the conversations hold messages, and no choice of the model. %s "
            "The step advances, the weights stay.",
            remedy,
        )
    elif not sequences:
        log.warning(
            "nothing to train on: %d groups, of which %d without spread in their rewards; "
            "%d conversations cut off by the token limit, %d with a choice without token ids. The "
            "step advances, the weights stay.",
            len(groups),
            counts["flat_groups"],
            counts["truncated"],
            counts["left_out"],
        )
