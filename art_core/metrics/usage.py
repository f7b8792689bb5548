"""What was used, never what it cost: tokens of an API call, time of devices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from attrs.validators import optional

from art_core.base.numbers import (
    as_count,
    as_number,
    as_number_or_none,
    check_count,
    check_price,
    check_seconds,
    text_of,
    to_texts,
)


@attrs.frozen(kw_only=True)
class TokenUsage:
    """Tokens of one call. `input_tokens` is the whole prompt, cache reads and writes included.

    `cache_write_1h_tokens` are the part of `cache_write_tokens` that is kept for an hour. Tokens of
    audio and images are parts of the prompt, of its cache reads and of the answer.
    `train_tokens` are what a hosted training service trained on, beside prompt and answer.
    `web_searches` and `file_searches` are those that the provider made and bills by the search;
    `grounded_prompts` is 1 when there were web searches, for models that bill by the prompt.
    `service_tier` is what the provider says it served ("flex", "priority", "batch"), `speed` and
    `geography` likewise ("fast", "us"). `cost_usd` is what the provider itself said the call cost,
    and wins over any price. `unread` names parts of the bill that were not understood. Counts may
    be numbers of NumPy or torch; ConfigError names one that is no count.
    """

    input_tokens: int = attrs.field(default=0, converter=as_count, validator=check_count)
    output_tokens: int = attrs.field(default=0, converter=as_count, validator=check_count)
    cache_read_tokens: int = attrs.field(default=0, converter=as_count, validator=check_count)
    cache_write_tokens: int = attrs.field(default=0, converter=as_count, validator=check_count)
    cache_write_1h_tokens: int = attrs.field(default=0, converter=as_count, validator=check_count)
    train_tokens: int = attrs.field(default=0, converter=as_count, validator=check_count)
    web_searches: int = attrs.field(default=0, converter=as_count, validator=check_count)
    input_audio_tokens: int = attrs.field(default=0, converter=as_count, validator=check_count)
    output_audio_tokens: int = attrs.field(default=0, converter=as_count, validator=check_count)
    cache_read_audio_tokens: int = attrs.field(default=0, converter=as_count, validator=check_count)
    input_image_tokens: int = attrs.field(default=0, converter=as_count, validator=check_count)
    output_image_tokens: int = attrs.field(default=0, converter=as_count, validator=check_count)
    cache_read_image_tokens: int = attrs.field(default=0, converter=as_count, validator=check_count)
    grounded_prompts: int = attrs.field(default=0, converter=as_count, validator=check_count)
    file_searches: int = attrs.field(default=0, converter=as_count, validator=check_count)
    service_tier: str | None = None
    speed: str | None = None
    geography: str | None = None
    cost_usd: float | None = None
    unread: tuple[str, ...] = attrs.field(default=(), converter=to_texts)

    @property
    def total_tokens(self) -> int:
        """Prompt, answer and what was trained on."""
        return self.input_tokens + self.output_tokens + self.train_tokens

    @property
    def terms(self) -> dict[str, str]:
        """What the price depends on beside the counts: tier, speed and geography, if not usual."""
        said = {
            "service_tier": self.service_tier,
            "speed": self.speed,
            "geography": self.geography,
        }
        texts = {name: getattr(value, "value", value) for name, value in said.items() if value}
        lower = {name: str(value).lower() for name, value in texts.items()}
        return {name: value for name, value in lower.items() if value not in USUAL}


USUAL = {
    *("default", "standard", "auto", "on_demand", "unspecified"),
    *("global", "not_available"),
}
"""Tiers, speeds and geographies that list prices are for."""
COUNTS = tuple(f.name for f in attrs.fields(TokenUsage) if f.default == 0)
"""The names of the counts of a TokenUsage."""


@attrs.frozen(kw_only=True)
class GpuTime:
    """Devices held for a time: `seconds` of `count` devices named `device`.

    `usd_per_hour` is the price of one device-hour when the user gave one; else the price hooks are
    asked.
    """

    device: str = attrs.field(converter=text_of)
    seconds: float = attrs.field(converter=as_number, validator=check_seconds)
    count: int = attrs.field(default=1, converter=as_count, validator=check_count)
    usd_per_hour: float | None = attrs.field(
        default=None, converter=as_number_or_none, validator=optional(check_price)
    )


def field(value: Any, *path: str) -> Any:
    """Read a nested field of a response that is an object or a dict; None where it is missing."""
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
    return value
