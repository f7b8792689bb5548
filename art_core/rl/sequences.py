"""Turns with engine tokens become training sequences: exact prefixes merge, nothing is tokenised
again.

Turn k+1 continues turn k's sequence exactly when its prompt starts with that sequence; otherwise (a
chat template dropped a thought, a context was cut) a new sequence starts and a prefix break is
counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs

from art_core.data.images import with_images
from art_core.data.trajectory import ChoiceTokens, History, is_choice, tokens_of


@attrs.frozen(kw_only=True)
class TokenSequence:
    """One row to train on: `token_ids` [T], `trainable` [T], the engine's `logprobs` [T] (0 where
    not trainable).

    `advantage` is the trajectory's; `token_advantages` [T] replace it where turns have advantages
    of their own, and it is their mean over trainable tokens. `weight` is 1 / its trainable tokens,
    so that each trajectory counts once. `policy_versions` are the training steps of the weights
    behind its turns, in their order (None where the endpoint did not report it). For a critic,
    `token_rewards` [T] are what each token earned, and a sequence that `continues` follows the one
    before it in the same conversation.
    `teacher_logprobs` [T] are a teacher's (0 where not trainable), None unless it scored all turns.
    `images` are the data URLs of the images in the prompts, in their order.
    `grammars` are (start, end, grammar) of the tokens that were sampled under a grammar: their
    log-probs are among the tokens that it allows.
    """

    token_ids: tuple[int, ...]
    trainable: tuple[bool, ...]
    logprobs: tuple[float, ...]
    advantage: float = 0.0
    weight: float = 1.0
    token_advantages: tuple[float, ...] | None = None
    token_rewards: tuple[float, ...] | None = None
    continues: bool = False
    policy_versions: tuple[int | None, ...] = ()
    teacher_logprobs: tuple[float, ...] | None = None
    images: tuple[str, ...] = ()
    grammars: tuple[tuple[int, int, str], ...] = ()

    @property
    def num_trainable(self) -> int:
        """Tokens that bear loss."""
        return sum(self.trainable)

    @property
    def advantages(self) -> tuple[float, ...]:
        """Advantages of all tokens [T]."""
        return self.token_advantages or (self.advantage,) * len(self.token_ids)

    @property
    def rewards(self) -> tuple[float, ...]:
        """Rewards of all tokens [T]."""
        return self.token_rewards or (0.0,) * len(self.token_ids)


@attrs.frozen(kw_only=True)
class MergedTurns:
    """Sequences of one conversation, and how often a turn did not continue the one before it."""

    sequences: tuple[TokenSequence, ...]
    prefix_breaks: int


def turns_of(history: History) -> tuple[list[ChoiceTokens], int]:
    """Return the turns of a conversation that carry engine tokens, and the number of choices that
    do not. ConfigError if a prompt had an image that the conversation does not have.
    """
    choices = [item for item in history.messages_and_choices if is_choice(item)]
    turns = [turn for turn in map(tokens_of, choices) if turn is not None]
    return with_images(turns, history), len(choices) - len(turns)


def merge_turns(
    turns: Sequence[ChoiceTokens],
    advantages: Sequence[float] | None = None,
    rewards: Sequence[float] | None = None,
) -> MergedTurns:
    """Merge turns into training sequences by exact prefix of token ids. `advantages` are those of
    the turns; `rewards` are what they earned, at their last token.
    """
    rows: list[_Row] = []
    breaks = 0
    none: Sequence[float | None] = [None] * len(turns)
    for turn, advantage, reward in zip(turns, advantages or none, rewards or none, strict=True):
        if not rows or not rows[-1].precedes(turn):
            breaks += bool(rows)
            rows.append(_Row())
        rows[-1].add(turn, advantage, reward)
    return MergedTurns(sequences=tuple(row.sequence() for row in rows), prefix_breaks=breaks)


def staleness(sequences: Iterable[TokenSequence], step: int) -> dict[str, float]:
    """Return by how many training steps the weights behind the turns are older than those of
    `step`: the mean over turns and the maximum. Turns of unknown weights do not count; if there are
    no others, the result is empty.
    """
    behind = [step - v for s in sequences for v in s.policy_versions if v is not None]
    if not behind:
        return {}
    return {
        "data/staleness_mean": sum(behind) / len(behind),
        "data/staleness_max": float(max(behind)),
    }


@attrs.define
class _Row:
    token_ids: list[int] = attrs.field(factory=list)
    trainable: list[bool] = attrs.field(factory=list)
    logprobs: list[float] = attrs.field(factory=list)
    advantages: list[float] = attrs.field(factory=list)
    rewards: list[float] = attrs.field(factory=list)
    versions: list[int | None] = attrs.field(factory=list)
    scored: list[float] = attrs.field(factory=list)
    images: tuple[str, ...] = ()

    def precedes(self, turn: ChoiceTokens) -> bool:
        """Return whether a turn's prompt begins with these tokens and images."""
        same = list(turn.prompt_ids[: len(self.token_ids)]) == self.token_ids
        return same and turn.images[: len(self.images)] == self.images

    grammars: list[tuple[int, int, str]] = attrs.field(factory=list)

    def add(self, turn: ChoiceTokens, advantage: float | None, reward: float | None) -> None:
        fresh, sampled = turn.prompt_ids[len(self.token_ids) :], turn.completion_ids
        self.token_ids += [*fresh, *sampled]
        if turn.grammar is not None:
            end = len(self.token_ids)
            self.grammars.append((end - len(sampled), end, turn.grammar))
        self.trainable += [False] * len(fresh) + [True] * len(sampled)
        self.logprobs += [0.0] * len(fresh) + list(turn.logprobs)
        if advantage is not None:
            self.advantages += [0.0] * len(fresh) + [advantage] * len(sampled)
        if reward is not None:
            earned = [0.0] * len(sampled)
            earned[-1:] = [reward] * len(earned[-1:])
            self.rewards += [0.0] * len(fresh) + earned
        self.versions.append(turn.policy_version)
        self.images = turn.images
        if turn.teacher_logprobs is not None:
            self.scored += [0.0] * len(fresh) + list(turn.teacher_logprobs)

    def sequence(self) -> TokenSequence:
        return TokenSequence(
            token_ids=tuple(self.token_ids),
            trainable=tuple(self.trainable),
            logprobs=tuple(self.logprobs),
            advantage=sum(self.advantages) / max(1, sum(self.trainable)),
            token_advantages=tuple(self.advantages) or None,
            token_rewards=tuple(self.rewards) or None,
            policy_versions=tuple(self.versions),
            teacher_logprobs=(
                tuple(self.scored) if len(self.scored) == len(self.token_ids) else None
            ),
            images=self.images,
            grammars=tuple(self.grammars),
        )
