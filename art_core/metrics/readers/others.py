"""Usage of LangChain and Cohere."""

from __future__ import annotations

from typing import Any

from art_core.metrics.usage import Fields, TokenUsage, field

_KNOWN = ("total_tokens", "input_cost", "output_cost", "input_cost_details", "output_cost_details")
_TIERS = ("flex", "priority")


def langchain_usage(usage: Any, metadata: Any) -> TokenUsage:
    """Read a message's usage. `total_cost` is 0 in a reply from LangChain's own cache."""
    f = Fields(usage, "usage_metadata")
    f.known(*_KNOWN)
    given, answered = "input_token_details", "output_token_details"
    # Counts of another tier have its name as a prefix; the bare name counts what is not cached.
    f.known(*(f"{part}.{tier}" for part in (given, answered) for tier in _TIERS))
    f.known(*(f"{answered}.{tier}reasoning" for tier in ("", *(f"{name}_" for name in _TIERS))))
    reads = ("cache_read", *(f"{tier}_cache_read" for tier in _TIERS))
    hour = f.count(f"{given}.ephemeral_1h_input_tokens")
    written = hour + f.count(f"{given}.ephemeral_5m_input_tokens")
    raw = field(metadata, "usage")
    cost = f.get("total_cost")
    return TokenUsage(
        input_tokens=f.count("input_tokens"),
        output_tokens=f.count("output_tokens"),
        cache_read_tokens=sum([f.count(f"{given}.{name}") for name in reads]),
        cache_write_tokens=max(f.count(f"{given}.cache_creation"), written),
        cache_write_1h_tokens=hour,
        input_audio_tokens=f.count(f"{given}.audio"),
        output_audio_tokens=f.count(f"{answered}.audio"),
        input_image_tokens=f.count(f"{given}.image"),
        output_image_tokens=f.count(f"{answered}.image"),
        web_searches=Fields(raw).count("server_tool_use.web_search_requests"),
        service_tier=field(metadata, "service_tier") or field(raw, "service_tier"),
        speed=field(raw, "speed"),
        geography=field(raw, "inference_geo"),
        cost_usd=cost,
        unread=() if cost is not None else f.unread(),
    )


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
