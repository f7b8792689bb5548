"""Usage of OpenAI's Responses, Realtime and image APIs, and of Pydantic AI: `input_tokens` with
details.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from art_core.metrics.readers.fields import Fields
from art_core.metrics.readers.reported import reported_cost
from art_core.metrics.usage import TokenUsage, field

_IN = ("input_tokens_details", "input_token_details")
_OUT = ("output_tokens_details", "output_token_details")
_KNOWN = (
    "total_tokens",
    "type",
    "server_tool_use.web_fetch_requests",
    # Pydantic AI: its details repeat the provider's own fields.
    "requests",
    "tool_calls",
    "details",
    "request_usage_entries",  # OpenAI Agents: the parts of the sum
)
_BILLED_TOOLS = ("code_interpreter_call", "image_generation_call")


def responses_usage(usage: Any, response: Any, tier: str | None) -> TokenUsage:
    """Read usage with `input_tokens` that include what was cached."""
    f = Fields(usage)
    f.known(*_KNOWN)
    f.known(*(f"{name}.text_tokens" for name in (*_IN, *_OUT)))
    f.known(*(f"{name}.reasoning_tokens" for name in _OUT))
    f.known(*(f"{name}.cached_tokens_details.text_tokens" for name in _IN))
    tools = [field(item, "type") for item in _items(response) if _is_billed(item)]
    cost = reported_cost(f)
    return TokenUsage(
        input_tokens=f.count("input_tokens"),
        output_tokens=f.count("output_tokens"),
        cache_read_tokens=f.first(
            *_of(_IN, "cached_tokens"), *_of(_IN, "cache_read_input_tokens"), "cache_read_tokens"
        ),
        cache_write_tokens=f.first(*_of(_IN, "cache_write_tokens"), "cache_write_tokens"),
        cache_write_1h_tokens=f.count("cache_write_1h_tokens"),
        cache_read_audio_tokens=f.first(
            *_of(_IN, "cached_tokens_details.audio_tokens"), "cache_audio_read_tokens"
        ),
        cache_read_image_tokens=f.first(*_of(_IN, "cached_tokens_details.image_tokens")),
        input_audio_tokens=f.first(*_of(_IN, "audio_tokens"), "input_audio_tokens"),
        output_audio_tokens=f.first(*_of(_OUT, "audio_tokens"), "output_audio_tokens"),
        input_image_tokens=f.first(*_of(_IN, "image_tokens")),
        output_image_tokens=f.first(*_of(_OUT, "image_tokens")),
        web_searches=tools.count("web_search_call")
        or f.first("server_tool_use.web_search_requests", "details.web_search_requests"),
        file_searches=tools.count("file_search_call"),
        service_tier=f.get("service_tier") or tier,
        cost_usd=cost,
        unread=() if cost is not None else _unread(f, tools),
    )


def _of(details: Iterable[str], name: str) -> Iterable[str]:
    return (f"{part}.{name}" for part in details)


def _items(response: Any) -> list[Any]:
    items = field(response, "output")
    return items if isinstance(items, list) else []


def _is_billed(item: Any) -> bool:
    """Return whether a tool call is billed: opening a page is no search."""
    if field(item, "status") == "failed":
        return False
    return field(item, "action", "type") in (None, "search")


def _unread(f: Fields, tools: list[Any]) -> tuple[str, ...]:
    billed = dict.fromkeys(f"output[].{tool}" for tool in tools if tool in _BILLED_TOOLS)
    return (*f.unread(), *billed)
