"""Usage in OpenAI's chat form, which most providers send: `prompt_tokens`, `completion_tokens`."""

from __future__ import annotations

from typing import Any

from art_core.metrics.readers.fields import Fields
from art_core.metrics.readers.reported import reported_cost
from art_core.metrics.usage import TokenUsage, field

_READ = (
    "prompt_tokens_details.cached_tokens",
    "cached_tokens",  # Moonshot, Together
    "cached_input_tokens",  # Inception
    "prompt_cache_hit_tokens",  # DeepSeek
    "cache_read_input_tokens",  # LiteLLM
    "num_cached_tokens",  # Mistral
    "prompt_token_details.cached_tokens",
)
_WRITTEN = (
    "prompt_tokens_details.cache_write_tokens",
    "prompt_tokens_details.cache_creation_tokens",  # LiteLLM
    "cache_creation_input_tokens",
    "prompt_tokens_details.cache_creation_input_tokens",  # Alibaba
)
_WRITTEN_1H = (
    "prompt_tokens_details.cache_creation_token_details.ephemeral_1h_input_tokens",
    "prompt_tokens_details.cache_creation.ephemeral_1h_input_tokens",
    "cache_creation.ephemeral_1h_input_tokens",
)
_KNOWN = (
    "prompt_tokens_details.text_tokens",
    "prompt_tokens_details.cache_type",
    "prompt_tokens_details.cache_creation_token_details.ephemeral_5m_input_tokens",
    "prompt_tokens_details.cache_creation.ephemeral_5m_input_tokens",
    "cache_creation.ephemeral_5m_input_tokens",
    "prompt_cache_miss_tokens",
    "x_details",  # Alibaba: the same counts once more
    "completion_tokens_details.text_tokens",
    # Both are counted in completion_tokens.
    "completion_tokens_details.accepted_prediction_tokens",
    "completion_tokens_details.rejected_prediction_tokens",
    "server_tool_use.web_fetch_requests",
    "search_context_size",
    # The same counts under the names of Responses
    "input_tokens",
    "output_tokens",
    "input_tokens_details",
    "output_tokens_details",
    # Times of Groq, and of SambaNova
    "queue_time",
    "prompt_time",
    "completion_time",
    "total_time",
    "start_time",
    "end_time",
    "time_to_first_token",
    "total_latency",
    "acceptance_rate",
    "completion_tokens_after_first_per_sec",
    "completion_tokens_after_first_per_sec_first_ten",
    "completion_tokens_per_sec",
    "total_tokens_per_sec",
    "is_last_response",
    "stop_reason",
)


def chat_usage(usage: Any, response: Any, tier: str | None) -> TokenUsage:
    """Read usage in the chat form. Cached tokens are a part of the prompt's.

    OpenAI's models for search make one for each call; its answer cites the pages.
    """
    f = Fields(usage)
    f.known(*_KNOWN)
    prompt = f.count("prompt_tokens")
    read, written = f.first(*_READ), f.first(*_WRITTEN)
    cost = reported_cost(f)
    return TokenUsage(
        input_tokens=prompt,
        output_tokens=_answer(f, prompt, cached=bool(read or written)),
        cache_read_tokens=read,
        cache_write_tokens=written,
        cache_write_1h_tokens=f.first(*_WRITTEN_1H),
        input_audio_tokens=f.count("prompt_tokens_details.audio_tokens"),
        output_audio_tokens=f.count("completion_tokens_details.audio_tokens"),
        input_image_tokens=f.count("prompt_tokens_details.image_tokens"),
        output_image_tokens=f.count("completion_tokens_details.image_tokens"),
        web_searches=f.first(
            "server_tool_use.web_search_requests", "prompt_tokens_details.web_search_requests"
        )
        or int(_cites(response)),
        service_tier=f.get("service_tier") or tier,
        speed=f.get("speed"),
        geography=f.get("inference_geo"),
        cost_usd=cost,
        unread=() if cost is not None else f.unread(),
    )


def _answer(f: Fields, prompt: int, *, cached: bool) -> int:
    """Return the answer's tokens with thoughts.

    xAI, and Gemini where it speaks OpenAI's form, leave thoughts out of the answer; the total has
    them. Where a cache was used, it may be the cache that the total has more.
    """
    answer, whole = f.count("completion_tokens"), f.count("total_tokens")
    thought = f.first("completion_tokens_details.reasoning_tokens", "reasoning_tokens")
    if not whole:
        return answer + thought if thought > answer else answer
    beside = whole - prompt - answer
    return answer + beside if beside > 0 and (beside == thought or not cached) else answer


def _cites(response: Any) -> bool:
    """Return whether an answer cites pages of the web."""
    choices = field(response, "choices")
    for choice in choices if isinstance(choices, list) else ():
        notes = field(choice, "message", "annotations")
        if any(field(note, "type") == "url_citation" for note in notes or ()):
            return True
    return False
