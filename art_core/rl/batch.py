"""Groups of trajectories become the sequences of one training step; what is left out is logged."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import attrs

from art_core.base.errors import ConfigError
from art_core.base.numbers import has_spread
from art_core.data.trajectory import ChoiceTokens, Trajectory, TrajectoryGroup, is_cut_off
from art_core.rl.config import TrainConfig
from art_core.rl.credit import Credit, step_credit, step_rewards
from art_core.rl.distill import distilled, teacher_kl
from art_core.rl.losses import LossPreset
from art_core.rl.sequences import TokenSequence, merge_turns, turns_of

log = logging.getLogger("art_core")

_MAX_FLOAT32 = 3.4e38
"""About the largest number that the trainers' 32-bit floats hold."""


def no_critic() -> ConfigError:
    """Return the error of a backend without a critic."""
    return ConfigError(
        "advantage_baseline='value' needs a critic, which only backend 'local' trains",
        "Use another baseline, such as 'group_mean'.",
    )


def no_images() -> ConfigError:
    """Return the error of a backend or a model that trains on text only."""
    return ConfigError(
        "the attempts have images, and this model is trained on text",
        "Train a base model that reads images with backend 'local' and engine='transformers'.",
    )


def no_grammars() -> ConfigError:
    """Return the error of a backend that computes no log-probs under a grammar."""
    return ConfigError(
        "an answer was sampled under a grammar (response_format, tool_choice, structured_outputs), "
        "so its log-probs are among the tokens that it allows; only backends 'local' and 'unsloth' "
        "train such answers",
        "Train with one of them, or sample without constraints.",
    )


@attrs.frozen(kw_only=True)
class TrainingBatch:
    """Sequences of one step with advantages and weights, and `metrics` of what went in."""

    sequences: tuple[TokenSequence, ...]
    metrics: dict[str, float]

    @property
    def empty(self) -> bool:
        """True when the step has nothing to learn from."""
        return not self.sequences


def training_batch(
    groups: Iterable[TrajectoryGroup],
    config: TrainConfig,
    *,
    critic: bool = False,
    images: bool = False,
    grammars: bool = False,
) -> TrainingBatch:
    """Turn groups into training sequences. `critic` and `images` are what the backend trains.

    Raises ConfigError when no choice has engine tokens, a reward is not a finite number, or an
    advantage is too large for a 32-bit float, and for a critic, images, or answers that were
    sampled under a grammar, where the backend does not train them.
    """
    if config.critic and not critic:
        raise no_critic()
    counts: Counter[str] = Counter()
    sequences: list[TokenSequence] = []
    groups = list(groups)
    distills = config.loss.distill_coef > 0
    for group, found in zip(groups, _credits(groups, config), strict=True):
        teaches = distills or config.critic or any(any(credit.values) for credit in found)
        counts["flat_groups"] += not teaches
        for trajectory, credit in zip(group.trajectories, found, strict=True):
            conversations = _conversations_of(trajectory, credit, counts)
            if teaches:
                sequences += _sequences_of(conversations, credit, config, counts)
    _warn_of_missing(groups, sequences, counts, config)
    if not images and any(sequence.images for sequence in sequences):
        raise no_images()
    if not grammars and any(sequence.grammars for sequence in sequences):
        raise no_grammars()
    return TrainingBatch(
        sequences=tuple(sequences),
        metrics={
            "data/step_trainer_tokens": float(sum(s.num_trainable for s in sequences)),
            "data/step_num_sequences": float(len(sequences)),
            "data/step_num_truncated": float(num_cut_off(groups)),
            "data/step_num_biased_choices": float(counts["biased"]),
            "data/prefix_breaks": float(counts["prefix_breaks"]),
            **_trainable(groups, counts),
            **({"loss/teacher_kl": teacher_kl(sequences)} if distills and sequences else {}),
        },
    )


def _trainable(groups: Sequence[TrajectoryGroup], counts: Counter[str]) -> dict[str, float]:
    """Return the number of groups that teach, where it is not that of groups with spread."""
    teach = len(groups) - counts["flat_groups"]
    if teach == sum(has_spread(group.rewards) for group in groups):
        return {}
    return {
        "data/step_num_groups_trainable": float(teach),
        "train/num_groups_trainable": float(teach),
    }


def _credits(groups: Sequence[TrajectoryGroup], config: TrainConfig) -> list[list[Credit]]:
    for group in groups:
        if not all(map(math.isfinite, group.rewards)):
            raise ConfigError(
                f"a group has rewards that are not finite: {group.rewards}",
                "Gathering sets such attempts aside: art.gather_trajectory_groups(groups). "
                "Attempts of unknown outcome need a judge, or are lessons for model.train_sft.",
            )
    if not config.loss.uses_rewards:
        return [[Credit(0.0) for _ in group] for group in groups]
    found = step_rewards(groups) if config.critic else step_credit(groups, config)
    for group, of_group in zip(groups, found, strict=True):
        if not all(abs(value) <= _MAX_FLOAT32 for credit in of_group for value in credit.values):
            raise ConfigError(
                f"rewards from {min(group.rewards):g} to {max(group.rewards):g} give advantages "
                "that no 32-bit float holds",
                'Give rewards of about 1, or train(..., scale_rewards="group").',
            )
    return found


def num_cut_off(groups: Iterable[TrajectoryGroup]) -> int:
    """Count the attempts with an answer that `max_tokens` cut off."""
    return sum(
        any(is_cut_off(i) for h in trajectory.histories() for i in h.messages_and_choices)
        for group in groups
        for trajectory in group.trajectories
    )


Conversation = tuple[Sequence[ChoiceTokens], Sequence[float] | None]
"""The turns of a conversation, and their advantages where these differ."""


def _conversations_of(
    trajectory: Trajectory, credit: Credit, counts: Counter[str]
) -> Sequence[Conversation]:
    """Return the turns of each conversation that has engine tokens throughout; count the others."""
    found: list[Conversation] = []
    for place, history in enumerate(trajectory.histories()):
        turns, missing = turns_of(history)
        counts["choices"] += len(turns) + missing
        counts["conversations"] += bool(turns or missing)
        counts["without_tokens"] += missing
        if missing:
            counts["left_out"] += 1
        else:
            found.append((turns, None if place else credit.turns))
    return found


def _sequences_of(
    conversations: Iterable[Conversation],
    credit: Credit,
    config: TrainConfig,
    counts: Counter[str],
) -> Sequence[TokenSequence]:
    found: list[TokenSequence] = []
    whole = 0.0 if config.critic else credit.attempt
    for turns, advantages in conversations:
        if config.critic:
            earned = advantages or [*[0.0] * (len(turns) - 1), credit.attempt][: len(turns)]
            merged = merge_turns(turns, rewards=earned)
        else:
            merged = merge_turns(turns, advantages)
        counts["prefix_breaks"] += merged.prefix_breaks
        if config.mask_truncated and any(turn.truncated for turn in turns):
            continue
        counts["biased"] += sum(turn.biased for turn in turns)
        kept = [s for s in merged.sequences if s.num_trainable]
        found += [
            attrs.evolve(s, continues=config.critic and place > 0) for place, s in enumerate(kept)
        ]
    of_trajectory = sum(s.num_trainable for s in found)
    loss = config.loss
    weighted = [
        attrs.evolve(
            s,
            advantage=whole if s.token_advantages is None else s.advantage,
            weight=token_weight(loss, of_sequence=s.num_trainable, of_trajectory=of_trajectory),
        )
        for s in found
    ]
    return [distilled(s, loss.distill_coef) for s in weighted] if loss.distill_coef else weighted


REMEDY = (
    "Rollouts must call the model through model.openai_client(), which asks the endpoint "
    "for token ids, and append completion.choices[0] itself to the trajectory. "
    "model.recording(trajectory) does so for another client or a framework."
)


def _warn_of_missing(
    groups: Sequence[TrajectoryGroup],
    sequences: Sequence[TokenSequence],
    counts: Counter[str],
    config: TrainConfig,
) -> None:
    missing, flat = counts["without_tokens"], counts["flat_groups"]
    if missing and flat < len(groups) and missing == counts["choices"]:
        raise ConfigError(
            f"none of the {missing} choices carries engine token ids and log-probs", REMEDY
        )
    if missing:
        log.warning(
            "%d of %d choices carry no engine token ids and log-probs. A conversation is trained "
            "whole or not at all: %d of %d are left out. %s",
            missing,
            counts["choices"],
            counts["left_out"],
            counts["conversations"],
            REMEDY,
        )
    if counts["biased"]:
        log.warning(
            "%d trained choices were drawn at a temperature or top_p other than 1, or with min_p "
            "or logit_bias: their log-probs are not those of the draw, which biases the importance "
            "ratio. Sample what is trained at temperature=1 and top_p=1, without the others.",
            counts["biased"],
        )
    if not sequences:
        reasons = "; ".join(_reasons(groups, counts, config)) or "no groups were given"
        log.warning("nothing to train on: %s. The step advances, the weights stay.", reasons)


def _reasons(
    groups: Sequence[TrajectoryGroup], counts: Counter[str], config: TrainConfig
) -> Iterator[str]:
    """Yield the reasons why nothing is left to train on. Counts are over all submitted groups."""
    failed, flat = sum(len(group.failures) for group in groups), counts["flat_groups"]
    attempts, cut = failed + sum(map(len, groups)), num_cut_off(groups)
    if attempts > failed and not counts["choices"]:
        yield f"the conversations hold messages, and no choice of the model ({REMEDY[:-1]})"
    if failed:
        yield f"{failed} of {attempts} attempts failed"
    if cut and config.mask_truncated:
        yield (
            f"{cut} of {attempts} attempts were cut off at max_tokens (raise max_tokens; "
            "train(..., mask_truncated=False) trains them all the same)"
        )
    if flat:
        yield f"{flat} of {len(groups)} groups are without spread in their rewards"
    if counts["left_out"]:
        yield (
            f"{counts['left_out']} of {counts['conversations']} conversations hold a choice "
            "without token ids"
        )


T = TypeVar("T")


def optimizer_steps(sequences: Sequence[T], size: int | None) -> list[Sequence[T]]:
    """Split sequences, in their order, into optimizer steps of `size` sequences; None puts all into
    one. The last step has at least half as many, or joins the one before it, so that no step at the
    full learning rate is taken on a small rest.

    The order is that of the groups, so groups stay together, and no random number is drawn.
    """
    if not sequences:
        return []
    size = size or len(sequences)
    starts = list(range(0, len(sequences), size))
    if len(starts) > 1 and 2 * (len(sequences) - starts[-1]) < size:
        starts.pop()
    ends = [*starts[1:], len(sequences)]
    return [sequences[a:b] for a, b in zip(starts, ends, strict=True)]


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
    """Return the divisor of the weighted sum of token losses over the sequences of one optimizer
    step: the number of trajectories, sequences, tokens, or sequences again.
    """
    if loss.normalization == "constant":
        return float(sum(1 for _ in sequences))
    return sum(s.weight * s.num_trainable for s in sequences)
