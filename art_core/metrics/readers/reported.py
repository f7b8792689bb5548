"""US dollars that a provider itself reports in its usage."""

from __future__ import annotations

from typing import Any

from art_core.base.numbers import number_or_none
from art_core.metrics.readers.fields import Fields

REPORTING = ("deepinfra", "openrouter", "perplexity", "x-ai", "xai")
"""Providers whose responses have the cost of the call."""


def reported_cost(f: Fields) -> Any:
    """Return OpenRouter's `cost`, Perplexity's `total_cost` in it, DeepInfra's `estimated_cost` or
    xAI's ticks; None without one.
    """
    ticks = number_or_none(f.get("cost_in_usd_ticks"))
    if ticks is not None:
        return ticks / 1e10
    cost = f.get("cost")
    if cost is None:
        cost = f.get("estimated_cost")
    if f.get("is_byok") is True:
        # OpenRouter's fee for a key of your own; the key's owner pays for the call itself.
        upstream = f.get("cost_details.upstream_inference_cost")
        return (number_or_none(cost) or 0.0) + (number_or_none(upstream) or 0.0)
    total = f.get("cost.total_cost")
    return cost if total is None else total
