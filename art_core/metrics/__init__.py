"""Metrics: names, values, sums and rows. All of it is pure."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_NAMES_OF_ART = ("MetricsBuilder", "track_api_cost")
"""Names in the `metrics` of ART."""


def __getattr__(name: str) -> Any:
    if name not in _NAMES_OF_ART:
        raise AttributeError(f"module 'art_core.metrics' has no attribute {name!r}")
    return getattr(import_module("art_core"), name)
