"""Prices, counts and dollars as they are given: NumPy's, torch's, Decimal's or text become plain
numbers, everything else is refused by its name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import attrs

from art_core.base.errors import ConfigError

MAX_COUNT = 2**53
"""The largest count: up to there a float, and JSON, hold every whole number."""


def number_or_none(value: Any) -> float | None:
    """Return a finite number as a float, also one that is text; None for anything else.

    A bool is no amount.
    """
    if value is None or type(value).__name__ in {"bool", "bool_"}:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
    return number if math.isfinite(number) else None


def count_of(name: str, value: Any) -> int:
    """Return a count as an int; ConfigError for what is negative, too large or no whole number."""
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
    """Return a price as a float; ConfigError for what is no finite number of at least 0."""
    number = number_or_none(value)
    if number is None or number < 0 or isinstance(value, (str, bytes)):
        raise ConfigError(f"{name} must be a price of at least 0, got {_shown(value)}")
    return number


def seconds_of(name: str, value: Any) -> float:
    """Return a time as a float; ConfigError for what is no finite number of at least 0."""
    number = number_or_none(value)
    if number is None:
        raise ConfigError(f"{name} must be a number, got {_shown(value)}")
    if number < 0:
        raise ConfigError(f"{name} can't be negative, got {_shown(value)}")
    return number


def text_of(value: Any) -> str:
    """Return text that a log can hold: what is not UTF-8 becomes a question mark."""
    return str(value).encode(errors="replace").decode()


def to_texts(values: Iterable[Any]) -> tuple[str, ...]:
    """Return each of several texts as `text_of` does."""
    return tuple(map(text_of, values))


def _shown(value: Any) -> str:
    return f"{value!r:.80}"


def as_count(value: Any) -> int:
    """Return a count as an int, and what is none as it is: `check_count` names its field."""
    number = None if type(value) is int else number_or_none(value)
    return value if number is None or not number.is_integer() else int(number)


def as_number(value: Any) -> float:
    """Return a number as a float, and what is none as it is, text among it."""
    number = None if isinstance(value, (str, bytes)) else number_or_none(value)
    return value if number is None else number


def as_number_or_none(value: Any) -> float | None:
    """As `as_number`; None stays."""
    return None if value is None else as_number(value)


def check_count(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Raise what `count_of` raises, for a field."""
    count_of(attribute.name, value)


def check_price(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Raise what `price_of` raises, for a field."""
    price_of(attribute.name, value)


def check_seconds(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Raise what `seconds_of` raises, for a field."""
    seconds_of(attribute.name, value)
