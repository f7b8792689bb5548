"""Usage of Cohere's chat: billed units, beside the tokens that the model saw."""

from __future__ import annotations

from typing import Any

from art_core.metrics.readers.fields import Fields
from art_core.metrics.usage import TokenUsage


def cohere_usage(usage: Any) -> TokenUsage:
    """Read the units that are billed; searches and classifications among them are left unread."""
    f = Fields(usage)
    f.known("tokens")
    return TokenUsage(
        input_tokens=f.count("billed_units.input_tokens"),
        output_tokens=f.count("billed_units.output_tokens"),
        cache_read_tokens=f.count("cached_tokens"),
        unread=f.unread(),
    )
