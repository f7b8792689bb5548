"""Checks of the options that a backend is made with, by name."""

from __future__ import annotations

import math

from art_core.errors import ConfigError


def check_counts(**options: object) -> None:
    """Raise ConfigError for what is not a whole number of at least 1."""
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}")


def check_positive(**options: object) -> None:
    """Raise ConfigError for what is not a number above 0."""
    for name, value in options.items():
        number = _number(value)
        if number is None or not number > 0:
            raise ConfigError(f"{name} must be a number above 0, got {value!r}")


def check_price(**options: object) -> None:
    """Raise ConfigError for what is no finite number of at least 0; None is no price at all."""
    for name, value in options.items():
        number = _number(value)
        if value is not None and (number is None or not 0 <= number < math.inf):
            raise ConfigError(f"{name} must be a finite number of at least 0, got {value!r}")


def _number(value: object) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
