"""Read the usage in a provider's response, in the form of each provider."""

from __future__ import annotations

from typing import Any

import attrs

from art_core.base.errors import ConfigError
from art_core.metrics.readers.anthropic import anthropic_usage, bedrock_usage, is_anthropic
from art_core.metrics.readers.gemini import gemini_usage
from art_core.metrics.readers.openai import chat_usage, is_chat, responses_usage
from art_core.metrics.readers.others import cohere_usage, langchain_usage
from art_core.metrics.usage import TokenUsage, field

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


def read_delta(chunk: Any) -> TokenUsage | None:
    """Read a later event of an Anthropic stream, which may leave out the prompt's tokens."""
    usage = field(chunk, "usage")
    if field(usage, "output_tokens") is None:
        return None
    try:
        return anthropic_usage(usage, None)
    except ConfigError:
        return None


def _read(response: Any) -> TokenUsage | None:
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
    if is_chat(usage):
        return chat_usage(usage, response, tier)
    if field(usage, "input_tokens") is not None:
        if is_anthropic(usage, response):
            return anthropic_usage(usage, tier)
        return responses_usage(usage, response, tier)
    if field(usage, "inputTokens") is not None:
        return bedrock_usage(usage, response)
    return None if field(usage, "billed_units") is None else cohere_usage(usage)


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
