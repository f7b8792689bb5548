"""Upper bounds of what the next step, evaluation or call costs."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import attrs

from art_core.forecast.interval import of_next
from art_core.metrics.receipt import TokenRates

REMEMBERED = 64
"""Earlier costs of a kind that the next one is estimated from."""
ENOUGH = 8
"""So many earlier costs are better than an upper bound of tokens."""
ANSWER_TOKENS = 4096
"""Tokens of an answer whose request states no limit."""
_IMAGE_TOKENS = 4096
_MESSAGE_TOKENS = 16
_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")


@attrs.define
class Costs:
    """The newest costs of one kind, and how many there were."""

    values: deque[float] = attrs.field(factory=lambda: deque(maxlen=REMEMBERED))
    count: int = 0
    _bound: float | None = None
    _after: int = 0

    def add(self, usd: float) -> None:
        """Add the newest cost."""
        self.values.append(usd)
        self.count += 1

    def bound(self) -> float | None:
        """Return an upper bound of the next; computed again after an eighth as many new ones."""
        if self.count > self._after * 9 // 8:
            self._bound, self._after = bound_of_next(self.values), self.count
        return self._bound


def bound_of_next(costs: Collection[float]) -> float | None:
    """Return an upper bound of the cost that comes next in a series; None for an empty one.

    It is the upper end of the 90 % interval of `of_next`. Of few costs, that is very wide: it is
    twice the largest one at most. Costs of 0 among others are left out.
    """
    if not costs:
        return None
    paid = [usd for usd in costs if usd > 0]
    interval = of_next(paid)
    few = 2 * max(paid, default=0.0)
    if interval is None:
        return few
    return interval.high90 if len(paid) >= ENOUGH else min(few, interval.high90)


def bound_of_call(
    costs: Costs, rates: TokenRates | None, request: Mapping[str, Any]
) -> float | None:
    """Return an upper bound of a paid call: by earlier ones if there are enough, else by the tokens
    of its request at its rates; None if neither is known.
    """
    if costs.count >= ENOUGH or rates is None:
        return costs.bound()
    # No prompt has more tokens than bytes; a write to a cache may cost more than a fresh prompt.
    of_prompt = max(rates.input_per_million, rates.cache_write_per_million or 0.0)
    answers = request.get("n")
    most = next((request[name] for name in _LIMITS if isinstance(request.get(name), int)), None)
    answer = (ANSWER_TOKENS if most is None else most) * (answers if type(answers) is int else 1)
    return (_tokens(request) * of_prompt + answer * rates.output_per_million) / 1e6


def _tokens(value: Any) -> int:
    """Return an upper bound of the tokens of texts in a request."""
    if isinstance(value, str):
        return _IMAGE_TOKENS if value.startswith("data:") else len(value.encode())
    if isinstance(value, Mapping):
        return _MESSAGE_TOKENS + sum(_tokens(key) + _tokens(each) for key, each in value.items())
    if isinstance(value, list | tuple):
        return sum(map(_tokens, value))
    return _MESSAGE_TOKENS


def gain_per_dollar(rewards: Iterable[tuple[float, float]]) -> float | None:
    """Return the slope of rewards over dollars by least squares, plus its standard error, from
    pairs of dollars so far and reward; None below 10 pairs, or without a spread of dollars.
    """
    pairs = list(rewards)
    if len(pairs) < 10:
        return None
    mean_x = sum(x for x, _ in pairs) / len(pairs)
    mean_y = sum(y for _, y in pairs) / len(pairs)
    spread = sum((x - mean_x) ** 2 for x, _ in pairs)
    if spread <= 0:
        return None
    slope = sum((x - mean_x) * (y - mean_y) for x, y in pairs) / spread
    rest = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in pairs)
    return float(slope + (rest / (len(pairs) - 2) / spread) ** 0.5)
