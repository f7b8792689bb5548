"""Read JSON out of what a language model answered."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from art_core.base.errors import RewardError

_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL | re.IGNORECASE)
_THOUGHTS = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
_DECODER = json.JSONDecoder()


def json_in(text: str) -> Any:
    """Return the JSON value of an answer: the whole text, a fenced block, or the largest object
    or list inside prose. Raises RewardError when there is none.
    """
    bare = _THOUGHTS.sub("", text).strip()
    for part in (bare, *(block.strip() for block in _FENCE.findall(bare))):
        try:
            return json.loads(part)
        except ValueError:
            continue
    found = list(_values_inside(bare))
    if not found:
        raise RewardError(f"the answer holds no JSON: {text!r:.120}")
    return max(found, key=lambda item: item[0])[1]


def _values_inside(text: str) -> list[tuple[int, Any]]:
    found = []
    place = 0
    while (start := re.compile(r"[{\[]").search(text, place)) is not None:
        try:
            value, end = _DECODER.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            place = start.end()
            continue
        found.append((end - start.start(), value))
        place = end
    return found


def score_of(value: Any) -> float:
    """Return a score as a finite float; RewardError for anything else, a bool among it."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise RewardError(f"a score must be a number, got {value!r:.40}")
    try:
        score = float(value)
    except ValueError as error:
        raise RewardError(f"a score must be a number, got {value!r:.40}") from error
    if not math.isfinite(score):
        raise RewardError(f"a score must be finite, got {value!r:.40}")
    return score


def to_unit(scores: list[float]) -> list[float]:
    """Return scores between 0 and 1; anything outside of its scale is clamped.

    Judges use other scales than they were asked for: with a score of at least 2 the scale is 0 to
    10, with one over 10 it is 0 to 100.
    """
    highest = max(scores, default=0.0)
    scale = 1.0 if highest < 2 else 10.0 if highest <= 10 else 100.0
    return [min(1.0, max(0.0, score / scale)) for score in scores]
