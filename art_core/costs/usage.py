"""What was used, never what it cost: tokens of an API call, time of devices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from art_core.errors import ConfigError


def _not_negative(_: Any, attribute: attrs.Attribute[Any], value: float) -> None:
    if not value >= 0:
        raise ConfigError(f"{attribute.name} can't be negative, got {value!r}")


@attrs.frozen(kw_only=True)
class TokenUsage:
    """Tokens of one call. `input_tokens` counts the whole prompt; cache reads and writes are parts
    of it.

    `cost_usd` is what the provider itself said the call cost, and wins over any price.
    """

    input_tokens: int = attrs.field(default=0, validator=_not_negative)
    output_tokens: int = attrs.field(default=0, validator=_not_negative)
    cache_read_tokens: int = attrs.field(default=0, validator=_not_negative)
    cache_write_tokens: int = attrs.field(default=0, validator=_not_negative)
    cost_usd: float | None = None


@attrs.frozen(kw_only=True)
class GpuTime:
    """Devices held for a time: `seconds` of `count` devices named `device`.

    `usd_per_hour` is the price of one device-hour when the user gave one; else the price hooks are
    asked.
    """

    device: str
    seconds: float = attrs.field(validator=_not_negative)
    count: int = attrs.field(default=1, validator=_not_negative)
    usd_per_hour: float | None = None


def field(value: Any, *path: str) -> Any:
    """Read a nested field of a response that is an object or a dict; None where it is missing."""
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
    return value


def read_usage(response: Any) -> TokenUsage | None:
    """Read the usage of an OpenAI (chat or Responses) or Anthropic response; None when it carries
    none.

    OpenAI counts cached tokens inside the prompt; Anthropic counts cache reads and writes beside
    `input_tokens`.
    """
    usage = field(response, "usage")
    if usage is None:
        return None
    prompt = field(usage, "prompt_tokens")
    if prompt is not None:
        return TokenUsage(
            input_tokens=prompt,
            output_tokens=field(usage, "completion_tokens") or 0,
            cache_read_tokens=field(usage, "prompt_tokens_details", "cached_tokens") or 0,
            cost_usd=field(usage, "cost"),
        )
    fresh = field(usage, "input_tokens")
    if fresh is None:
        return None
    read = field(usage, "cache_read_input_tokens") or 0
    written = field(usage, "cache_creation_input_tokens") or 0
    inside = field(usage, "input_tokens_details", "cached_tokens") or 0
    return TokenUsage(
        input_tokens=fresh + read + written,
        output_tokens=field(usage, "output_tokens") or 0,
        cache_read_tokens=read + inside,
        cache_write_tokens=written,
        cost_usd=field(usage, "cost"),
    )
