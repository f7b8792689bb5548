"""Usage of Gemini, of its own API and of Vertex AI: `usageMetadata`, in either spelling."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from art_core.base.numbers import count_of
from art_core.metrics.usage import Fields, TokenUsage, field

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
