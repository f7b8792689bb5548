"""Read the usage in a response of OpenAI's APIs, whose forms most providers use."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs

from art_core.base.fields import Fields, field
from art_core.base.numbers import number_or_none
from art_core.metrics.receipt import TokenUsage

_BATCH = "batch"
_FAILED = ("errored", "canceled", "expired")
_CACHED = ("cache_hit", "cached", "gptcache")
"""Marks of DSPy, AutoGen and GPTCache on a reply from their cache."""


def read_usage(response: Any) -> TokenUsage | None:
    """Read the usage of a response of OpenAI (chat and Responses), Anthropic, Gemini, Bedrock or
    Cohere, of a finished batch or a line of one, or of a LangChain message, object or dict; None
    without one.

    `unread` has the fields that are not zero and not understood. A reply from the cache of the
    client, such as LiteLLM's, costs nothing.
    """
    if _is_line(response):
        result = _result_of(response)
        read = TokenUsage(cost_usd=0.0) if result is None else _read(result)
        return attrs.evolve(read, service_tier=_BATCH) if read is not None else None
    read = _read(response)
    if field(response, "object") == "batch" and read is not None:
        return attrs.evolve(read, service_tier=_BATCH)
    if _from_the_clients_cache(response):
        return attrs.evolve(read or TokenUsage(), cost_usd=0.0, unread=())
    return read


def _read(response: Any) -> TokenUsage | None:
    usage = field(response, "usage")
    if is_chat(usage):
        return chat_usage(usage, response, field(response, "service_tier"))
    from art_core.metrics.providers import other_usage  # its readers use some of this module

    return other_usage(response)


def _is_line(response: Any) -> bool:
    """Return whether this is a line of a batch's output (OpenAI, Mistral, Anthropic, Gemini)."""
    return isinstance(field(response, "custom_id"), str) or (
        isinstance(field(response, "key"), str) and field(response, "response") is not None
    )


def _result_of(line: Any) -> Any:
    """Return the response in a batch's line; None for a request that failed and costs nothing."""
    status = field(line, "response", "status_code")
    if field(line, "error") or field(line, "result", "type") in _FAILED:
        return None
    if isinstance(status, int) and status >= 400:
        return None
    body = field(line, "response", "body") or field(line, "result", "message")
    return field(line, "response") if body is None else body


def _from_the_clients_cache(response: Any) -> bool:
    hidden = field(response, "_hidden_params", "cache_hit")
    return hidden is True or any(field(response, mark) is True for mark in _CACHED)


_CHAT_READ = (
    "prompt_tokens_details.cached_tokens",
    "cached_tokens",  # Moonshot, Together
    "cached_input_tokens",  # Inception
    "prompt_cache_hit_tokens",  # DeepSeek
    "cache_read_input_tokens",  # LiteLLM
    "num_cached_tokens",  # Mistral
    "prompt_token_details.cached_tokens",
)
_CHAT_WRITTEN = (
    "prompt_tokens_details.cache_write_tokens",
    "prompt_tokens_details.cache_creation_tokens",  # LiteLLM
    "cache_creation_input_tokens",
    "prompt_tokens_details.cache_creation_input_tokens",  # Alibaba
)
_CHAT_WRITTEN_1H = (
    "prompt_tokens_details.cache_creation_token_details.ephemeral_1h_input_tokens",
    "prompt_tokens_details.cache_creation.ephemeral_1h_input_tokens",
    "cache_creation.ephemeral_1h_input_tokens",
)
_CHAT_KNOWN = (
    "prompt_tokens_details.text_tokens",
    "prompt_tokens_details.cached_tokens_details.text_tokens",  # LiteLLM, of Gemini
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


def is_chat(usage: Any) -> bool:
    """Return whether a usage has OpenAI's chat form.

    A batch of OpenAI has the names of both forms; the count of one of them is 0.
    """
    prompt = field(usage, "prompt_tokens")
    return bool(prompt) or (prompt is not None and not field(usage, "input_tokens"))


def chat_usage(usage: Any, response: Any, tier: str | None) -> TokenUsage:
    """Read usage in the chat form. The prompt's tokens include cached ones.

    OpenAI's models for search make one search for each call, and their answer cites the pages.
    """
    f = Fields(usage)
    f.known(*_CHAT_KNOWN)
    prompt = f.count("prompt_tokens")
    read, written = f.first(*_CHAT_READ), f.first(*_CHAT_WRITTEN)
    cost = reported_cost(f)
    return TokenUsage(
        input_tokens=prompt,
        output_tokens=_answer(f, prompt, cached=bool(read or written)),
        cache_read_tokens=read,
        cache_write_tokens=written,
        cache_write_1h_tokens=f.first(*_CHAT_WRITTEN_1H),
        cache_read_audio_tokens=f.count("prompt_tokens_details.cached_tokens_details.audio_tokens"),
        cache_read_image_tokens=f.count("prompt_tokens_details.cached_tokens_details.image_tokens"),
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

    xAI, and Gemini in OpenAI's form, count thoughts only in the total. With a cache, the difference
    to the total may be cached tokens.
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


_IN = ("input_tokens_details", "input_token_details")
_OUT = ("output_tokens_details", "output_token_details")
_RESPONSES_KNOWN = (
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
    """Read usage of Responses, Realtime, images and Pydantic AI. `input_tokens` has cached ones."""
    f = Fields(usage)
    f.known(*_RESPONSES_KNOWN)
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


REPORTING = ("deepinfra", "openrouter", "perplexity", "x-ai", "xai")
"""Providers whose responses have the cost of the call."""


def reported_cost(f: Fields) -> Any:
    """Return OpenRouter's `cost`, Perplexity's `total_cost` in it, DeepInfra's `estimated_cost` or
    xAI's ticks; None without one.
    """
    ticks = number_or_none(f.get("cost_in_usd_ticks"))
    if ticks is not None:
        return ticks / 1e10
    cost = f.get("cost")
    if cost is None:
        cost = f.get("estimated_cost")
    if f.get("is_byok") is True:
        # OpenRouter's fee for a key of your own; the key's owner pays for the call itself.
        upstream = f.get("cost_details.upstream_inference_cost")
        return (number_or_none(cost) or 0.0) + (number_or_none(upstream) or 0.0)
    total = f.get("cost.total_cost")
    return cost if total is None else total
