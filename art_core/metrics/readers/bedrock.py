"""Usage of Amazon Bedrock's Converse: cache reads and writes stand beside `inputTokens`."""

from __future__ import annotations

from typing import Any

from art_core.base.numbers import count_of
from art_core.metrics.readers.fields import Fields
from art_core.metrics.usage import TokenUsage, field


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
