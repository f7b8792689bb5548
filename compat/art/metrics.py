"""Metrics and costs that a script adds by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import art_core
from art_core import MetricsBuilder

__all__ = ["MetricsBuilder", "track_api_cost"]

F = TypeVar("F", bound=Callable[..., Any])


def track_api_cost(
    *, source: str, provider: str, model_name: str, **options: Any
) -> Callable[[F], F]:
    """Return a decorator that books the cost of a function's answers.

    Prices have ART's names: `prompt_price_per_million`, `completion_price_per_million`, and others.
    """
    given: Any = {
        name.replace("_price_per_million", "_per_million"): value
        for name, value in options.items()
        if value is not None
    }
    decorate: Any = art_core.track_api_cost(
        source=source, provider=provider, model_name=model_name, **given
    )
    return decorate  # type: ignore[no-any-return]
