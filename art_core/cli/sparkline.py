"""Sparklines: curves as one line of text."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

_LEVELS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Draw finite values as bars; more than `width` values are averaged in bins."""
    bins = _binned(values, width)
    low, high = min(bins), max(bins)
    # Halves, so that the difference of two huge numbers stays finite.
    spread = high / 2 - low / 2
    if spread <= 0:
        return _LEVELS[0] * len(bins)
    top = len(_LEVELS) - 1
    return "".join(_LEVELS[round((v / 2 - low / 2) / spread * top)] for v in bins)


def _binned(values: Sequence[float], width: int) -> list[float]:
    count = min(len(values), width)
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    return [
        math.fsum(v / (end - start) for v in values[start:end])
        for start, end in itertools.pairwise(edges)
    ]
