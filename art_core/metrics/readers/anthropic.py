"""Usage of Anthropic and Amazon Bedrock: cache reads and writes are not in the input's tokens."""

from __future__ import annotations

from typing import Any

import attrs

from art_core.base.numbers import count_of
from art_core.metrics.readers.openai import reported_cost
from art_core.metrics.usage import Fields, TokenUsage, field

_COUNTS = (
    "input_tokens",
    "output_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
    "cache_creation",
)
_KNOWN = (
    "type",
    "output_tokens_details.thinking_tokens",  # counted in output_tokens
    "server_tool_use.web_fetch_requests",
    "server_tool_use.tool_search_requests",
)
_MARKS = (
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
    "cache_creation",
    "iterations",
    "inference_geo",
    "speed",
)


def is_anthropic(usage: Any, response: Any) -> bool:
    """Return whether a usage is Anthropic's; else it is that of OpenAI's Responses."""
    return field(response, "type") == "message" or any(
        field(usage, mark) is not None for mark in _MARKS
    )


def anthropic_usage(usage: Any, tier: str | None) -> TokenUsage:
    """Read a message's usage.

    With `iterations` (a compaction, or tools that the service ran), the sum over them is what is
    billed. An iteration of another model has a price of its own: it is left unread.
    """
    f = Fields(usage)
    f.known(*_KNOWN)
    iterations = f.get("iterations")
    parts = [Fields(part, "usage.iterations[]") for part in iterations or ()]
    own = [part for part in parts if not field(part.usage, "model")]
    f.known(*(_COUNTS if own else ()))
    counted = [_counted(part) for part in own or [f]]
    sums: dict[str, Any] = {name: sum(counts[name] for counts in counted) for name in counted[0]}
    read = TokenUsage(
        **sums,
        web_searches=f.count("server_tool_use.web_search_requests"),
        service_tier=f.get("service_tier") or tier,
        speed=f.get("speed"),
        geography=f.get("inference_geo"),
        cost_usd=reported_cost(f),
    )
    if read.cost_usd is not None:
        return read
    unread = [path for part in (f, *own) for path in part.unread()]
    if len(own) < len(parts):
        unread.append("usage.iterations[].model")
    return attrs.evolve(read, unread=tuple(dict.fromkeys(unread)))


def _counted(f: Fields) -> dict[str, int]:
    f.known(*_KNOWN)
    read = f.count("cache_read_input_tokens")
    hour = f.count("cache_creation.ephemeral_1h_input_tokens")
    split = hour + f.count("cache_creation.ephemeral_5m_input_tokens")
    written = f.count("cache_creation_input_tokens") or split
    return {
        "input_tokens": f.count("input_tokens") + read + written,
        "output_tokens": f.count("output_tokens"),
        "cache_read_tokens": read,
        "cache_write_tokens": written,
        "cache_write_1h_tokens": hour,
    }


def bedrock_usage(usage: Any, response: Any) -> TokenUsage:
    """Read the usage of a Converse response."""
    f = Fields(usage)
    f.known("totalTokens", "cacheReadInputTokenCount", "cacheWriteInputTokenCount")
    read, written = f.count("cacheReadInputTokens"), f.count("cacheWriteInputTokens")
    hour = [
        count_of("cacheDetails[].inputTokens", field(part, "inputTokens") or 0)
        for part in f.get("cacheDetails") or ()
        if field(part, "ttl") == "1h"
    ]
    return TokenUsage(
        input_tokens=f.count("inputTokens") + read + written,
        output_tokens=f.count("outputTokens"),
        cache_read_tokens=read,
        cache_write_tokens=written,
        cache_write_1h_tokens=sum(hour),
        service_tier=field(response, "serviceTier", "type"),
        unread=f.unread(),
    )
