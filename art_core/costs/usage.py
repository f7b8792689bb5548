"""What was used, never what it cost: tokens of an API call, time of devices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from art_core.errors import ConfigError


def _not_negative(_: Any, attribute: attrs.Attribute[Any], value: float) -> None:
    if not value >= 0:
        raise ConfigError(f"{attribute.name} can't be negative, got {value!r}")


def price_or_none(_: Any, attribute: attrs.Attribute[Any], value: float | None) -> None:
    """Raise ConfigError for a price that is negative or not finite."""
    if value is not None and not 0 <= value < float("inf"):
        raise ConfigError(f"{attribute.name} must be a price of at least 0, got {value!r}")


@attrs.frozen(kw_only=True)
class TokenUsage:
    """Tokens of one call. `input_tokens` is the whole prompt, cache reads and writes included.

    `cache_write_1h_tokens` are the part of `cache_write_tokens` that is kept for an hour.
    `train_tokens` are what a hosted training service trained on, beside prompt and answer.
    `service_tier` is what the provider says it served ("flex", "priority", "batch"). `cost_usd` is
    what the provider itself said the call cost, and wins over any price.
    """

    input_tokens: int = attrs.field(default=0, validator=_not_negative)
    output_tokens: int = attrs.field(default=0, validator=_not_negative)
    cache_read_tokens: int = attrs.field(default=0, validator=_not_negative)
    cache_write_tokens: int = attrs.field(default=0, validator=_not_negative)
    cache_write_1h_tokens: int = attrs.field(default=0, validator=_not_negative)
    train_tokens: int = attrs.field(default=0, validator=_not_negative)
    service_tier: str | None = None
    cost_usd: float | None = None

    @property
    def total_tokens(self) -> int:
        """Prompt, answer and what was trained on."""
        return self.input_tokens + self.output_tokens + self.train_tokens


COUNTS = tuple(f.name for f in attrs.fields(TokenUsage) if f.name.endswith("_tokens"))
"""The names of the counts of a TokenUsage."""


@attrs.frozen(kw_only=True)
class GpuTime:
    """Devices held for a time: `seconds` of `count` devices named `device`.

    `usd_per_hour` is the price of one device-hour when the user gave one; else the price hooks are
    asked.
    """

    device: str
    seconds: float = attrs.field(validator=_not_negative)
    count: int = attrs.field(default=1, validator=_not_negative)
    usd_per_hour: float | None = attrs.field(default=None, validator=price_or_none)


def field(value: Any, *path: str) -> Any:
    """Read a nested field of a response that is an object or a dict; None where it is missing."""
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
    return value


def read_usage(response: Any) -> TokenUsage | None:
    """Read the usage of an OpenAI, Anthropic or Gemini response, object or dict; None without one.

    OpenAI (chat and Responses) counts cached tokens inside the prompt; Anthropic counts cache reads
    and writes beside `input_tokens`; Gemini counts thoughts beside the answer's tokens.
    """
    usage = field(response, "usage")
    if usage is not None:
        tier = field(response, "service_tier") or field(usage, "service_tier")
        if field(usage, "prompt_tokens") is not None:
            return _openai_chat(usage, tier)
        if field(usage, "input_tokens") is not None:
            return _anthropic_or_responses(usage, tier)
    usage = field(response, "usage_metadata") or field(response, "usageMetadata")
    return None if usage is None else _gemini(usage)


def _openai_chat(usage: Any, tier: str | None) -> TokenUsage:
    return TokenUsage(
        input_tokens=field(usage, "prompt_tokens"),
        output_tokens=field(usage, "completion_tokens") or 0,
        cache_read_tokens=field(usage, "prompt_tokens_details", "cached_tokens") or 0,
        service_tier=tier,
        cost_usd=field(usage, "cost"),
    )


def _anthropic_or_responses(usage: Any, tier: str | None) -> TokenUsage:
    read = field(usage, "cache_read_input_tokens") or 0
    written = field(usage, "cache_creation_input_tokens") or 0
    return TokenUsage(
        input_tokens=field(usage, "input_tokens") + read + written,
        output_tokens=field(usage, "output_tokens") or 0,
        cache_read_tokens=read + (field(usage, "input_tokens_details", "cached_tokens") or 0),
        cache_write_tokens=written,
        cache_write_1h_tokens=field(usage, "cache_creation", "ephemeral_1h_input_tokens") or 0,
        service_tier=tier,
        cost_usd=field(usage, "cost"),
    )


def _gemini(usage: Any) -> TokenUsage:
    def read(snake: str, camel: str) -> int:
        return field(usage, snake) or field(usage, camel) or 0

    return TokenUsage(
        input_tokens=read("prompt_token_count", "promptTokenCount"),
        output_tokens=read("candidates_token_count", "candidatesTokenCount")
        + read("thoughts_token_count", "thoughtsTokenCount"),
        cache_read_tokens=read("cached_content_token_count", "cachedContentTokenCount"),
    )
