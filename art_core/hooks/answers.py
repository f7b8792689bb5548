"""The answers of hooks: what plugins offer, prices, and derived metrics, checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from art_core.base.errors import MetricError

OURS = {
    "backend": frozenset({"local", "ray", "unsloth", "tinker", "serverless"}),
    "environment": frozenset({"mcp", "openenv", "verifiers"}),
    "sandbox": frozenset(),
    "sink": frozenset({"wandb", "argus", "trackio", "mlflow", "tensorboard", "otel", "langfuse"}),
}
SINGULAR = {
    "art_advantages": "advantages",
    "art_backends": "backend",
    "art_checks": "check",
    "art_commands": "command",
    "art_environments": "environment",
    "art_losses": "loss",
    "art_sandboxes": "sandbox",
    "art_sinks": "sink",
}


class Offer(list[Any]):
    """The specs that one plugin offers, with the plugin's name."""

    def __init__(self, specs: Iterable[Any], plugin: str) -> None:
        super().__init__(specs)
        self.plugin = plugin


def offer_of(plugin: str, check: Callable[[Any], list[Any]]) -> Callable[[Any], Offer]:
    """Return the check of a hook's answer: a list of specs."""

    def read(answer: Any) -> Offer:
        return Offer(check(answer), getattr(answer, "plugin", plugin))

    return read


def price(answer: Any) -> float:
    """Return a price of at least 0; ValueError for another one."""
    usd = float(answer)
    if not 0 <= usd < math.inf:
        raise ValueError(f"{usd} is not a price")
    return usd


def derived(answer: Mapping[str, float]) -> dict[str, float]:
    """Return derived metrics; MetricError for totals and costs."""
    if totals := [key for key in answer if "/cum/" in key]:
        raise MetricError(f"{totals[0]!r} is a total, which the core keeps")
    if costs := [key for key in answer if key.startswith("costs/")]:
        raise MetricError(f"{costs[0]!r} would be among the dollars that were paid")
    return {key: float(value) for key, value in answer.items()}
