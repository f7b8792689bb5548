"""Fifth stop: the samples of a key, and the number that they become."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

from art_core.metrics.taxonomy import Taxonomy, combine_values, total

Samples = dict[str, list[float]]
"""What was added to each key since the last row."""


def combine(
    buffers: Iterable[Samples], taxonomy: Taxonomy
) -> tuple[dict[str, float], dict[str, float]]:
    """Combine the samples of each key as its spec says; apart, those that are not finite."""
    merged: Samples = {}
    for samples in buffers:
        for key, values in samples.items():
            merged.setdefault(key, []).extend(values)
    combined: dict[str, float] = {}
    odd: dict[str, float] = {}
    for key, values in merged.items():
        finite = [v for v in values if math.isfinite(v)]
        if finite:
            combined[key] = combine_values(finite, taxonomy.spec(key).combine)
        if len(finite) < len(values):
            odd[key] = next(v for v in values if not math.isfinite(v))
    return combined, odd


def folded(values: list[float]) -> list[float]:
    """Return fewer samples with the same sum, and one that is not finite if there are any."""
    odd = [v for v in values if not math.isfinite(v)]
    return [total([v for v in values if math.isfinite(v)]), *odd[:1]]


def set_aside(values: Mapping[str, float]) -> tuple[Mapping[str, float], dict[str, float]]:
    """Return the finite values, and apart the others; the same mapping when all are finite."""
    if math.isfinite(sum(values.values())):
        return values, {}
    odd = {key: value for key, value in values.items() if not math.isfinite(value)}
    return {key: value for key, value in values.items() if key not in odd}, odd


def added(
    buffered: Mapping[str, float], given: Mapping[str, float], taxonomy: Taxonomy
) -> dict[str, float]:
    """Join what waited with what is given: sums add up, else what is given wins."""
    merged = {**buffered, **given}
    both: Collection[str] = buffered.keys() & given.keys()
    for key in both:
        if taxonomy.spec(key).combine == "sum":
            merged[key] = buffered[key] + given[key]
    return merged
