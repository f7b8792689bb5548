"""The split of an optimizer step's sequences over ranks, balanced by tokens."""

from __future__ import annotations

from collections.abc import Sequence


def balanced_shares(lengths: Sequence[int], count: int) -> list[range]:
    """Split sequences into `count` runs of neighbours whose largest number of tokens is minimal.

    Neighbours stay together because the attempts of a group share their prompt, which one pack
    computes once. A share has at most total / count tokens and one sequence more; it may be empty.
    """
    low, high = max(lengths, default=0), sum(lengths)
    while low < high:
        middle = (low + high) // 2
        if len(_runs(lengths, middle)) <= count:
            high = middle
        else:
            low = middle + 1
    runs = _runs(lengths, low)
    return [*runs, *[range(0)] * (count - len(runs))]


def _runs(lengths: Sequence[int], most: int) -> list[range]:
    """Return the fewest runs of at most so many tokens each."""
    runs, start, tokens = [], 0, 0
    for place, length in enumerate(lengths):
        if place > start and tokens + length > most:
            runs.append(range(start, place))
            start, tokens = place, 0
        tokens += length
    return [*runs, range(start, len(lengths))] if lengths else []
