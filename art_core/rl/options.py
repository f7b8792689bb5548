"""Checks of an option's value, of a training step's and a backend's; each error names the option,
what it takes and what it got.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import attrs

from art_core.base.errors import ConfigError, unknown
from art_core.base.numbers import price_of

Check = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def check_options(check: Check, **options: Any) -> None:
    """Raise ConfigError for an option, by its name, whose value the check does not take."""
    for name, value in options.items():
        named: Any = SimpleNamespace(name=name)
        check(None, named, value)


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, (int, float))


def positive(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Take a finite number above 0."""
    if not _is_number(value) or not 0 < value < math.inf:
        raise ConfigError(f"{attribute.name} must be a finite number above 0, got {value!r}")


def not_negative(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Take a finite number of at least 0."""
    if not _is_number(value) or not 0 <= value < math.inf:
        raise ConfigError(f"{attribute.name} must be a finite number of at least 0, got {value!r}")


def price(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Take a price: a finite number of any kind, of at least 0."""
    price_of(attribute.name, value)


def cap(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Take a number above 0, `math.inf` for no cap."""
    if not _is_number(value) or not value > 0:
        raise ConfigError(
            f"{attribute.name} must be a number above 0 (math.inf for none), got {value!r}"
        )


def above_one(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Take a finite number above 1."""
    if not _is_number(value) or not 1 < value < math.inf:
        raise ConfigError(f"{attribute.name} must be a finite number above 1, got {value!r}")


def count(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Take a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{attribute.name} must be a whole number of at least 1, got {value!r}")


def step(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Take a whole number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(f"{attribute.name} must be a step, 0 or more, got {value!r}")


def balance(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Take a number in [-1, 1]."""
    if not _is_number(value) or not -1 <= value <= 1:
        raise ConfigError(f"{attribute.name} must lie in [-1, 1], got {value!r}")


def switch(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Take True or False."""
    if not isinstance(value, bool):
        raise ConfigError(f"{attribute.name} must be True or False, got {value!r}")


def optional(check: Check) -> Check:
    """Take None, or what `check` takes."""

    def checked(owner: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value is not None:
            check(owner, attribute, value)

    return checked


def one_of(known: Iterable[str]) -> Check:
    """Take one of these names."""
    names = tuple(known)

    def checked(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not isinstance(value, str) or value not in names:
            raise ConfigError(unknown(attribute.name, value, names))

    return checked
