"""From groups of trajectories to the rows of one training step, with what was left out and why."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence

import attrs

from art_core.data.trajectory import Trajectory, TrajectoryGroup
from art_core.errors import ConfigError
from art_core.rl.advantages import group_advantages, has_spread
from art_core.rl.config import TrainConfig
from art_core.rl.sequences import TokenSequence, merge_turns, turns_of

log = logging.getLogger("art_core")


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

    Raises ConfigError when no choice has engine tokens, or a reward is not a finite number.
    """
    counts: Counter[str] = Counter()
    sequences: list[TokenSequence] = []
    groups = list(groups)
    for group in groups:
        if not all(map(math.isfinite, group.rewards)):
            raise ConfigError(
                f"a group has rewards that are not finite: {group.rewards}",
                "Gathering sets such attempts aside: art.gather_trajectory_groups(groups).",
            )
        if not has_spread(group.rewards):
            counts["flat_groups"] += 1
            continue
        advantages = group_advantages(
            group.rewards,
            scale_rewards=config.scale_rewards,
            advantage_balance=config.advantage_balance,
        )
        for trajectory, advantage in zip(group.trajectories, advantages, strict=True):
            sequences += _sequences_of(trajectory, advantage, config, counts)
    _say_what_is_missing(groups, sequences, counts)
    return TrainingBatch(
        sequences=tuple(sequences),
        metrics={
            "data/step_trainer_tokens": float(sum(s.num_trainable for s in sequences)),
            "data/step_num_sequences": float(len(sequences)),
            "data/step_num_truncated": float(counts["truncated"]),
            "data/prefix_breaks": float(counts["prefix_breaks"]),
        },
    )


def _sequences_of(
    trajectory: Trajectory, advantage: float, config: TrainConfig, counts: Counter[str]
) -> Sequence[TokenSequence]:
    found: list[TokenSequence] = []
    for history in trajectory.histories():
        turns, missing = turns_of(history)
        counts["choices"] += len(turns) + missing
        if missing:
            counts["without_tokens"] += missing
            continue
        merged = merge_turns(turns)
        counts["prefix_breaks"] += merged.prefix_breaks
        if any(turn.truncated for turn in turns):
            counts["truncated"] += 1
            if config.mask_truncated:
                continue
        found += [s for s in merged.sequences if s.num_trainable]
    trainable = sum(s.num_trainable for s in found)
    return [attrs.evolve(s, advantage=advantage, weight=1 / trainable) for s in found]


def _say_what_is_missing(
    groups: Sequence[TrajectoryGroup], sequences: Sequence[TokenSequence], counts: Counter[str]
) -> None:
    remedy = (
        "Rollouts must call the model through model.openai_client(), which asks the endpoint "
        "for token ids, and append completion.choices[0] itself to the trajectory."
    )
    missing = counts["without_tokens"]
    if missing and not sequences and missing == counts["choices"]:
        raise ConfigError(
            f"none of the {missing} choices carries engine token ids and log-probs", remedy
        )
    if missing:
        log.warning(
            "%d of %d choices carry no engine token ids and are not trained. %s",
            missing,
            counts["choices"],
            remedy,
        )
    if not sequences:
        log.warning(
            "nothing to train on: %d groups, of which %d without spread in their rewards; "
            "%d conversations cut off by the token limit. The step advances, the weights stay.",
            len(groups),
            counts["flat_groups"],
            counts["truncated"],
        )
