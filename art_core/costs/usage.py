"""What was used, never what it cost: tokens of an API call, time of devices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from attrs.validators import optional

from art_core.costs.amounts import (
    as_count,
    as_number,
    as_number_or_none,
    check_count,
    check_price,
    check_seconds,
    count_of,
    number_or_none,
)


@attrs.frozen(kw_only=True)
class TokenUsage:
    """Tokens of one call. `input_tokens` is the whole prompt, cache reads and writes included.

    `cache_write_1h_tokens` are the part of `cache_write_tokens` that is kept for an hour.
    `train_tokens` are what a hosted training service trained on, beside prompt and answer.
    `web_searches` are those that the provider made and bills by the search.
    `service_tier` is what the provider says it served ("flex", "priority", "batch"). `cost_usd` is
    what the provider itself said the call cost, and wins over any price. Counts may be numbers of
    NumPy or torch; ConfigError names one that is no count.
    """

    input_tokens: int = attrs.field(default=0, converter=as_count, validator=check_count)
    output_tokens: int = attrs.field(default=0, converter=as_count, validator=check_count)
    cache_read_tokens: int = attrs.field(default=0, converter=as_count, validator=check_count)
    cache_write_tokens: int = attrs.field(default=0, converter=as_count, validator=check_count)
    cache_write_1h_tokens: int = attrs.field(default=0, converter=as_count, validator=check_count)
    train_tokens: int = attrs.field(default=0, converter=as_count, validator=check_count)
    web_searches: int = attrs.field(default=0, converter=as_count, validator=check_count)
    service_tier: str | None = None
    cost_usd: float | None = None

    @property
    def total_tokens(self) -> int:
        """Prompt, answer and what was trained on."""
        return self.input_tokens + self.output_tokens + self.train_tokens


COUNTS = tuple(f.name for f in attrs.fields(TokenUsage) if f.default == 0)
"""The names of the counts of a TokenUsage."""


@attrs.frozen(kw_only=True)
class GpuTime:
    """Devices held for a time: `seconds` of `count` devices named `device`.

    `usd_per_hour` is the price of one device-hour when the user gave one; else the price hooks are
    asked.
    """

    device: str
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


def read_usage(response: Any) -> TokenUsage | None:
    """Read the usage of an OpenAI, Anthropic or Gemini response, or of a LangChain message, object
    or dict; None without one.

    OpenAI (chat and Responses) counts the cache inside the prompt; Anthropic counts cache reads and
    writes beside `input_tokens`; Gemini counts thoughts beside the answer's tokens and what tools
    gave beside the prompt's. LiteLLM and OpenRouter answer in OpenAI's form.
    """
    usage = field(response, "usage")
    if usage is not None:
        tier = field(response, "service_tier") or field(usage, "service_tier")
        if field(usage, "prompt_tokens") is not None:
            return _openai_chat(usage, tier)
        if field(usage, "input_tokens") is not None:
            return _anthropic_or_responses(usage, tier)
    usage = field(response, "usage_metadata") or field(response, "usageMetadata")
    if field(usage, "input_tokens") is not None:
        return _langchain(usage, field(response, "response_metadata", "service_tier"))
    return None if usage is None else _gemini(usage)


def _count(usage: Any, *path: str) -> int:
    """Read a count, also one given as text; 0 where it is missing, ConfigError for what is none."""
    value = field(usage, *path)
    return 0 if value is None else count_of(path[-1], value)


def _openai_chat(usage: Any, tier: str | None) -> TokenUsage:
    prompt, answer = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    details = field(usage, "prompt_tokens_details")
    read = _count(details, "cached_tokens") or _count(usage, "cached_tokens")  # else Moonshot
    # LiteLLM says what Anthropic's cache took beside the details, and how long it stays in them.
    written = _count(details, "cache_write_tokens") or _count(usage, "cache_creation_input_tokens")
    # xAI, and Gemini where it speaks OpenAI's form, leave thoughts out of the answer: the total has
    # them. Where a cache was used, it may be the cache that the total has more.
    beside = _count(usage, "total_tokens") - prompt - answer
    thought = _count(usage, "completion_tokens_details", "reasoning_tokens")
    if beside > 0 and (beside == thought or not (read or written)):
        answer += beside
    return TokenUsage(
        input_tokens=prompt,
        output_tokens=answer,
        cache_read_tokens=read,
        cache_write_tokens=written,
        cache_write_1h_tokens=_count(
            details, "cache_creation_token_details", "ephemeral_1h_input_tokens"
        ),
        web_searches=_web_searches(usage),
        service_tier=tier,
        cost_usd=_said_cost(usage),
    )


def _anthropic_or_responses(usage: Any, tier: str | None) -> TokenUsage:
    details = field(usage, "input_tokens_details")
    read = _count(usage, "cache_read_input_tokens")
    written = _count(usage, "cache_creation_input_tokens")
    hour = _count(usage, "cache_creation", "ephemeral_1h_input_tokens")
    # Pydantic AI has names of its own for what Responses has in its details.
    read_inside = _count(details, "cached_tokens") or _count(usage, "cache_read_tokens")
    written_inside = _count(details, "cache_write_tokens") or _count(usage, "cache_write_tokens")
    return TokenUsage(
        input_tokens=_count(usage, "input_tokens") + read + written,
        output_tokens=_count(usage, "output_tokens"),
        cache_read_tokens=read + read_inside,
        cache_write_tokens=written + written_inside,
        cache_write_1h_tokens=hour or _count(usage, "cache_write_1h_tokens"),
        web_searches=_web_searches(usage),
        service_tier=tier,
        cost_usd=_said_cost(usage),
    )


def _web_searches(usage: Any) -> int:
    """Return what Anthropic says, itself or through LiteLLM."""
    return _count(usage, "server_tool_use", "web_search_requests")


def _said_cost(usage: Any) -> Any:
    """Return the US dollars that a provider says: OpenRouter's `cost`, Perplexity's `total_cost` in
    it, xAI's ticks.
    """
    ticks = number_or_none(field(usage, "cost_in_usd_ticks"))
    if ticks is not None:
        return ticks / 1e10
    cost = field(usage, "cost")
    if field(usage, "is_byok") is True:
        # OpenRouter's fee for a key of your own; the key's owner pays for the call itself.
        upstream = field(usage, "cost_details", "upstream_inference_cost")
        return (number_or_none(cost) or 0.0) + (number_or_none(upstream) or 0.0)
    total = field(cost, "total_cost")
    return cost if total is None else total


def _langchain(usage: Any, tier: str | None) -> TokenUsage:
    details = field(usage, "input_token_details") or {}
    hour = _count(details, "ephemeral_1h_input_tokens")
    written = hour + _count(details, "ephemeral_5m_input_tokens")
    return TokenUsage(
        input_tokens=_count(usage, "input_tokens"),
        output_tokens=_count(usage, "output_tokens"),
        # `flex_cache_read` in that tier
        cache_read_tokens=sum(_count(details, k) for k in details if k.endswith("cache_read")),
        cache_write_tokens=max(_count(details, "cache_creation"), written),
        cache_write_1h_tokens=hour,
        service_tier=tier,
    )


def _gemini(usage: Any) -> TokenUsage:
    def read(snake: str, camel: str) -> int:
        return _count(usage, snake) or _count(usage, camel)

    return TokenUsage(
        input_tokens=read("prompt_token_count", "promptTokenCount")
        + read("tool_use_prompt_token_count", "toolUsePromptTokenCount"),
        output_tokens=read("candidates_token_count", "candidatesTokenCount")
        + read("thoughts_token_count", "thoughtsTokenCount"),
        cache_read_tokens=read("cached_content_token_count", "cachedContentTokenCount"),
    )
