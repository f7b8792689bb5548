"""Beside the trajectories on disk: a prompt is stored as what it adds to an earlier turn.

The prompt of a turn begins with the prompt and the answer of the turn before. Stored whole, the
prompts of a conversation would take disk as the square of its length. A line of the files holds
`{"turn": [history, item], "same": n, "then": [...]}` in place of such a prompt: the first n of the
ids of that turn's prompt and answer, then other ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from art_core.data.choice import is_choice

PROMPT, ANSWER = "prompt_token_ids", "token_ids"
MIN_SAME = 16
"""A prompt that has fewer ids in common with every earlier turn is stored whole."""

Ids = list[int]
Turn = tuple[int, int]


def shorten_prompts(histories: Sequence[list[Any]]) -> None:
    """Shorten the prompts in the items of a trajectory's conversations, in place."""
    newest: dict[int, tuple[Turn, Ids]] = {}
    for place, items in enumerate(histories):
        for number, item in enumerate(items):
            if not _has_prompt(item):
                continue
            prompt = list(item[PROMPT])
            turn, same = _most_alike(prompt, newest, place)
            if same >= MIN_SAME:
                item[PROMPT] = {"turn": turn, "same": same, "then": prompt[same:]}
            newest[place] = (place, number), prompt + list(item.get(ANSWER) or ())


def restore_prompts(histories: Sequence[list[Any]]) -> list[list[Any]]:
    """Return the items with whole prompts; raises KeyError for a turn that is not there."""
    known: dict[Turn, Ids] = {}
    restored: list[list[Any]] = []
    for place, items in enumerate(histories):
        restored.append([])
        for number, stored in enumerate(items):
            item = stored
            if _is_choice(item) and isinstance(item.get(PROMPT), Mapping):
                item = {**item, PROMPT: _whole(item[PROMPT], known)}
            if _has_prompt(item):
                known[place, number] = [*item[PROMPT], *(item.get(ANSWER) or ())]
            restored[-1].append(item)
    return restored


def _whole(stored: Mapping[str, Any], known: Mapping[Turn, Ids]) -> Ids:
    place, number = stored["turn"]
    return [*known[place, number][: stored["same"]], *stored["then"]]


def _is_choice(item: Any) -> bool:
    return isinstance(item, Mapping) and is_choice(item)


def _has_prompt(item: Any) -> bool:
    return _is_choice(item) and isinstance(item.get(PROMPT), list | tuple)


def _most_alike(
    prompt: Ids, newest: Mapping[int, tuple[Turn, Ids]], place: int
) -> tuple[Turn, int]:
    """Return the turn whose ids have the longest beginning in common with a prompt, and how long
    it is. The turn before, in the same conversation, is looked at first.
    """
    best: tuple[Turn, int] = (0, 0), 0
    for history in sorted(newest, key=lambda other: other != place):
        turn, ids = newest[history]
        same = _same(prompt, ids)
        if same > best[1]:
            best = turn, same
        if same == len(ids):
            break
    return best


def _same(one: Ids, other: Ids) -> int:
    """Return how many ids at the beginning are equal. Comparing slices is fast, ids one by one is
    not.
    """
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
