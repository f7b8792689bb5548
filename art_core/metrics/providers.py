"""Usage in the forms of Anthropic, Bedrock, Gemini, LangChain and Cohere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from art_core.base.errors import ConfigError
from art_core.base.fields import Fields, field
from art_core.base.numbers import count_of
from art_core.metrics.readers import reported_cost, responses_usage
from art_core.metrics.receipt import TokenUsage


def other_usage(response: Any) -> TokenUsage | None:
    """Read the usage of a response that has not OpenAI's chat form; None without one."""
    usage = field(response, "usage")
    read = None if usage is None else _of_usage(usage, response)
    if read is not None:
        return read
    usage = field(response, "usage_metadata") or field(response, "usageMetadata")
    if field(usage, "input_tokens") is not None:
        return langchain_usage(usage, field(response, "response_metadata"))
    return None if usage is None else gemini_usage(usage, response)


def _of_usage(usage: Any, response: Any) -> TokenUsage | None:
    tier = field(response, "service_tier")
    if field(usage, "input_tokens") is not None:
        if is_anthropic(usage, response):
            return anthropic_usage(usage, tier)
        return responses_usage(usage, response, tier)
    if field(usage, "inputTokens") is not None:
        return bedrock_usage(usage, response)
    return None if field(usage, "billed_units") is None else cohere_usage(usage)


def read_delta(chunk: Any) -> TokenUsage | None:
    """Read a later event of an Anthropic stream, which may leave out the prompt's tokens."""
    usage = field(chunk, "usage")
    if field(usage, "output_tokens") is None:
        return None
    try:
        return anthropic_usage(usage, None)
    except ConfigError:
        return None


_ANTHROPIC_COUNTS = (
    "input_tokens",
    "output_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
    "cache_creation",
)
_ANTHROPIC_KNOWN = (
    "type",
    "output_tokens_details.thinking_tokens",  # counted in output_tokens
    "server_tool_use.web_fetch_requests",
    "server_tool_use.tool_search_requests",
)
_ANTHROPIC_MARKS = (
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
        field(usage, mark) is not None for mark in _ANTHROPIC_MARKS
    )


def anthropic_usage(usage: Any, tier: str | None) -> TokenUsage:
    """Read a message's usage.

    With `iterations` (a compaction, or tools that the service ran), the sum over them is what is
    billed. An iteration of another model has a price of its own: it is left unread.
    """
    f = Fields(usage)
    f.known(*_ANTHROPIC_KNOWN)
    iterations = f.get("iterations")
    parts = [Fields(part, "usage.iterations[]") for part in iterations or ()]
    own = [part for part in parts if not field(part.usage, "model")]
    f.known(*(_ANTHROPIC_COUNTS if own else ()))
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
    f.known(*_ANTHROPIC_KNOWN)
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


_PROMPT, _TOOLS = "prompt", "tool_use_prompt"
_ANSWER, _LIVE_ANSWER = "candidates", "response"
_PREFIXES = ("service_tier_", "traffic_type_", "on_demand_")


def gemini_usage(usage: Any, response: Any) -> TokenUsage:
    """Read a response's usage. Its count of the answer is without thoughts, and that of the prompt
    without results of tools; both are added. Cached tokens are part of the prompt.
    """
    f = Fields(usage, "usageMetadata")
    f.known("total_token_count", "totalTokenCount")
    queries = sum(map(len, _queries(response)))
    answer = {**_modalities(f, _LIVE_ANSWER), **_modalities(f, _ANSWER)}
    prompt, tools, cached = (_modalities(f, name) for name in (_PROMPT, _TOOLS, "cache"))
    video = ("usageMetadata.candidatesTokensDetails.VIDEO",) if answer.get("VIDEO") else ()
    return TokenUsage(
        input_tokens=_tokens(f, _PROMPT) + _tokens(f, _TOOLS),
        output_tokens=(_tokens(f, _ANSWER) or _tokens(f, _LIVE_ANSWER)) + _tokens(f, "thoughts"),
        cache_read_tokens=_tokens(f, "cached_content"),
        input_audio_tokens=prompt.get("AUDIO", 0) + tools.get("AUDIO", 0),
        output_audio_tokens=answer.get("AUDIO", 0),
        cache_read_audio_tokens=cached.get("AUDIO", 0),
        input_image_tokens=prompt.get("IMAGE", 0) + tools.get("IMAGE", 0),
        output_image_tokens=answer.get("IMAGE", 0),
        cache_read_image_tokens=cached.get("IMAGE", 0),
        web_searches=queries,
        grounded_prompts=1 if queries else 0,
        service_tier=_tier(f),
        unread=(*f.unread(), *video, *_maps(response)),
    )


def _names(snake: str) -> tuple[str, str]:
    head, *rest = snake.split("_")
    return snake, head + "".join(word.capitalize() for word in rest)


def _tokens(f: Fields, name: str) -> int:
    return f.first(*_names(f"{name}_token_count"))


def _modalities(f: Fields, name: str) -> dict[str, int]:
    """Return the tokens of each modality in a list of details."""
    found: dict[str, int] = {}
    for details in map(f.get, _names(f"{name}_tokens_details")):
        for part in details or ():
            modality = field(part, "modality")
            count = field(part, "token_count") or field(part, "tokenCount") or 0
            found[str(getattr(modality, "value", modality))] = count_of("tokenCount", count)
    return found


def _tier(f: Fields) -> str | None:
    """Return the service tier of the Gemini API, or the one in Vertex AI's traffic type."""
    names = (*_names("service_tier"), *_names("traffic_type"))
    found = next(filter(None, [f.get(name) for name in names]), None)
    if found is None:
        return None
    tier = str(getattr(found, "value", found)).lower()
    for prefix in _PREFIXES:
        tier = tier.removeprefix(prefix)
    return "standard" if tier in ("on_demand", "unspecified") else tier


def _grounding(response: Any) -> Iterator[Any]:
    candidates = field(response, "candidates")
    for candidate in candidates if isinstance(candidates, list) else ():
        for name in _names("grounding_metadata"):
            if (grounding := field(candidate, name)) is not None:
                yield grounding


def _queries(response: Any) -> Iterator[list[Any]]:
    for grounding in _grounding(response):
        for name in _names("web_search_queries"):
            yield [query for query in field(grounding, name) or () if query]


def _maps(response: Any) -> tuple[str, ...]:
    """Return the path of places that Google Maps gave, which are billed by the prompt."""
    for grounding in _grounding(response):
        for name in _names("grounding_chunks"):
            if any(field(chunk, "maps") is not None for chunk in field(grounding, name) or ()):
                return ("candidates[].groundingMetadata.groundingChunks[].maps",)
    return ()


_COSTS = ("input_cost", "output_cost", "input_cost_details", "output_cost_details")
_TIERS = ("flex", "priority")


def langchain_usage(usage: Any, metadata: Any) -> TokenUsage:
    """Read a message's usage. `total_cost` is 0 in a reply from LangChain's own cache."""
    f = Fields(usage, "usage_metadata")
    f.known("total_tokens", *_COSTS)
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
