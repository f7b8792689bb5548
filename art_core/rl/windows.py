"""The sequences of each optimizer step, when a training step takes several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

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
