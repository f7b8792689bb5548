"""Differences between the installed vLLM and the one that this plugin was written for."""

from __future__ import annotations

import inspect
from collections.abc import Mapping


def difference(kind: type, expected: Mapping[str, str]) -> str | None:
    """Return which method of a class is missing or takes other parameters; None when none does."""
    for name, parameters in expected.items():
        method = getattr(kind, name, None)
        if method is None:
            return f"{kind.__name__} has no {name}"
        found = ", ".join(inspect.signature(method).parameters)
        if found != parameters:
            return f"{kind.__name__}.{name} takes ({found}), expected ({parameters})"
    return None
