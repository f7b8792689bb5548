"""What was measured: names, sums, rows and the log that keeps them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from art_core.costs.track import track_api_cost
    from art_core.metrics.builder import MetricsBuilder

__all__ = ["MetricsBuilder", "track_api_cost"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'art_core.metrics' has no attribute {name!r}")
    import art_core

    return getattr(art_core, name)
