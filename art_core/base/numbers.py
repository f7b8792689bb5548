"""Prices, counts and seconds: numbers of NumPy, torch, Decimal or text become plain numbers; errors
name the field of any other value. Also the spread of rewards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from operator import index
from typing import Any

import attrs

from art_core.base.errors import ConfigError

_STEPS = 1 << 63
MAX_COUNT = 2**53
"""The largest count: up to there a float, and JSON, hold every whole number."""


def nan_if_none(number: float | None) -> float:
    """Return a number, NaN for None, which states that it is not known."""
    return math.nan if number is None else number


def number_or_none(value: Any) -> float | None:
    """Return a finite number, or a text of one, as a float; None for other values and for bools."""
    if value is None or type(value).__name__ in {"bool", "bool_"}:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
    return number if math.isfinite(number) else None


def number_or_nan(value: Any) -> float:
    """Return a number as a float, also an infinite one; NaN for other values."""
    try:
        return math.nan if isinstance(value, (bool, str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def count_of(name: str, value: Any) -> int:
    """Return a count as an int; ConfigError if it is negative, too large or no whole number."""
    if type(value) is int and 0 <= value <= MAX_COUNT:
        return value
    number = number_or_none(value)
    if number is None or not number.is_integer():
        raise ConfigError(f"{name} must be a whole number, got {_shown(value)}")
    if number < 0:
        raise ConfigError(f"{name} can't be negative, got {_shown(value)}")
    if number > MAX_COUNT:
        raise ConfigError(f"{name} must be at most 2**53, got {_shown(value)}")
    return int(number)


def price_of(name: str, value: Any) -> float:
    """Return a price as a float; ConfigError unless it is a finite number of at least 0."""
    number = number_or_none(value)
    if number is None or number < 0 or isinstance(value, (str, bytes)):
        raise ConfigError(f"{name} must be a price of at least 0, got {_shown(value)}")
    return number


def seconds_of(name: str, value: Any) -> float:
    """Return seconds as a float; ConfigError unless it is a finite number of at least 0."""
    number = number_or_none(value)
    if number is None:
        raise ConfigError(f"{name} must be a number, got {_shown(value)}")
    if number < 0:
        raise ConfigError(f"{name} can't be negative, got {_shown(value)}")
    return number


def text_of(value: Any) -> str:
    """Return text that a log can hold: what UTF-8 cannot encode becomes a question mark."""
    return str(value).encode(errors="replace").decode()


def to_texts(values: Iterable[Any]) -> tuple[str, ...]:
    """Return each of several texts as `text_of` does."""
    return tuple(map(text_of, values))


def _shown(value: Any) -> str:
    return f"{value!r:.80}"


def as_count(value: Any) -> int:
    """Return a whole number as an int, and any other value as it is: `check_count` refuses it."""
    number = None if type(value) is int else number_or_none(value)
    return value if number is None or not number.is_integer() else int(number)


def as_number(value: Any) -> float:
    """Return a number as a float, and any other value as it is, also text."""
    number = None if isinstance(value, (str, bytes)) else number_or_none(value)
    return value if number is None else number


def as_number_or_none(value: Any) -> float | None:
    """As `as_number`; None stays."""
    return None if value is None else as_number(value)


def _validator(check: Callable[[str, Any], object]) -> Callable[..., None]:
    def validate(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        check(attribute.name, value)

    return validate


# Validators of attrs fields, which raise what the functions raise.
check_count = _validator(count_of)
check_price = _validator(price_of)
check_seconds = _validator(seconds_of)


SPREAD_TOLERANCE = 1e-12
"""Rewards are equal when they differ by at most this share of the largest one, or of 1 if all are
smaller: sums of floats that are equal on paper differ in their last digits.
"""


def has_spread(rewards: Sequence[float]) -> bool:
    """Return whether a group can teach anything: its rewards differ by more than rounding."""
    if len(rewards) < 2:
        return False
    low, high = min(rewards), max(rewards)
    return high - low > SPREAD_TOLERANCE * max(1.0, -low, high)


def population_std(rewards: Sequence[float]) -> float:
    """Return the population standard deviation of rewards [G]."""
    # `hypot` makes no squares, which would overflow for large rewards
    return math.hypot(*centred(rewards)) / math.sqrt(len(rewards))


def centred(rewards: Sequence[float]) -> list[float]:
    """Return rewards minus their mean, as exact as the differences between the rewards.

    A mean of large rewards is rounded by more than close rewards differ. Differences from the first
    reward are exact for close rewards, and so is their mean. Halves keep differences finite.
    """
    halves = [reward / 2 for reward in rewards]
    differences = [half - halves[0] for half in halves]
    mean = sum(difference / len(rewards) for difference in differences)
    return [2 * (difference - mean) for difference in differences]


def checked_step(step: int) -> int:
    """Return a training step as an int, also one of numpy's; ConfigError for any other value."""
    try:
        whole = index(step)
    except TypeError:
        whole = -1
    if not 0 <= whole < _STEPS:
        raise ConfigError(f"a step must be a whole number from 0 to 2**63 - 1, got {step!r:.80}")
    return whole
