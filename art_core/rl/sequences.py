"""From turns with engine tokens to training sequences: exact prefixes merge, nothing is tokenised
again.

Turn k+1 continues turn k's sequence exactly when its prompt starts with that sequence; otherwise (a
chat template dropped a thought, a context was cut) a new sequence starts and a prefix break is
counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs

from art_core.data.choice import ChoiceTokens, is_choice, tokens_of
from art_core.data.trajectory import History


@attrs.frozen(kw_only=True)
class TokenSequence:
    """One row to train on: `token_ids` [T], `trainable` [T], the engine's `logprobs` [T] (0 where
    not trainable).

    `advantage` is the trajectory's; `weight` is 1 / its trainable tokens, so that each trajectory
    counts once.
    """

    token_ids: tuple[int, ...]
    trainable: tuple[bool, ...]
    logprobs: tuple[float, ...]
    advantage: float = 0.0
    weight: float = 1.0

    @property
    def num_trainable(self) -> int:
        """Tokens that bear loss."""
        return sum(self.trainable)


@attrs.frozen(kw_only=True)
class MergedTurns:
    """Sequences of one conversation, and how often a turn did not continue the one before it."""

    sequences: tuple[TokenSequence, ...]
    prefix_breaks: int


def turns_of(history: History) -> tuple[list[ChoiceTokens], int]:
    """Return the turns of a conversation that carry engine tokens, and the number of choices that
    do not.
    """
    choices = [item for item in history.messages_and_choices if is_choice(item)]
    turns = [turn for turn in map(tokens_of, choices) if turn is not None]
    return turns, len(choices) - len(turns)


def merge_turns(turns: Iterable[ChoiceTokens]) -> MergedTurns:
    """Merge turns into training sequences by exact prefix of token ids."""
    rows: list[tuple[list[int], list[bool], list[float]]] = []
    breaks = 0
    for turn in turns:
        if not rows or not _starts_with(turn.prompt_ids, rows[-1][0]):
            breaks += bool(rows)
            rows.append(([], [], []))
        ids, trainable, logprobs = rows[-1]
        fresh = turn.prompt_ids[len(ids) :]
        ids += [*fresh, *turn.completion_ids]
        trainable += [False] * len(fresh) + [True] * len(turn.completion_ids)
        logprobs += [0.0] * len(fresh) + list(turn.logprobs)
    return MergedTurns(
        sequences=tuple(
            TokenSequence(token_ids=tuple(i), trainable=tuple(t), logprobs=tuple(lp))
            for i, t, lp in rows
        ),
        prefix_breaks=breaks,
    )


def _starts_with(prompt: Sequence[int], prefix: list[int]) -> bool:
    return list(prompt[: len(prefix)]) == prefix
