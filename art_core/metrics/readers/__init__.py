"""Readers of usage: the tokens that a provider's response reports, in each provider's own form."""

from __future__ import annotations

from typing import Any

import attrs

from art_core.base.errors import ConfigError
from art_core.metrics.readers.anthropic import anthropic_usage, is_anthropic
from art_core.metrics.readers.batches import BATCH, is_line, result_of
from art_core.metrics.readers.bedrock import bedrock_usage
from art_core.metrics.readers.chat import chat_usage
from art_core.metrics.readers.cohere import cohere_usage
from art_core.metrics.readers.gemini import gemini_usage
from art_core.metrics.readers.langchain import langchain_usage
from art_core.metrics.readers.responses import responses_usage
from art_core.metrics.usage import TokenUsage, field

_CACHED = ("cache_hit", "cached", "gptcache")
"""What DSPy, AutoGen and GPTCache set in a reply out of their cache."""


def read_usage(response: Any) -> TokenUsage | None:
    """Read the usage of a response of OpenAI (chat and Responses), Anthropic, Gemini, Bedrock or
    Cohere, of a finished batch or a line of one, or of a LangChain message, object or dict; None
    without one.

    Fields that are there, not zero and not understood stand in `unread`. A reply out of the cache
    of the client, such as LiteLLM's, costs nothing.
    """
    if is_line(response):
        result = result_of(response)
        read = TokenUsage(cost_usd=0.0) if result is None else _read(result)
        return attrs.evolve(read, service_tier=BATCH) if read is not None else None
    read = _read(response)
    if field(response, "object") == "batch" and read is not None:
        return attrs.evolve(read, service_tier=BATCH)
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
    if _is_chat(usage):
        return chat_usage(usage, response, tier)
    if field(usage, "input_tokens") is not None:
        if is_anthropic(usage, response):
            return anthropic_usage(usage, tier)
        return responses_usage(usage, response, tier)
    if field(usage, "inputTokens") is not None:
        return bedrock_usage(usage, response)
    return None if field(usage, "billed_units") is None else cohere_usage(usage)


def _is_chat(usage: Any) -> bool:
    """Return whether a usage has OpenAI's chat form.

    A batch of OpenAI has the names of both forms; the count of one of them is 0.
    """
    prompt = field(usage, "prompt_tokens")
    return bool(prompt) or (prompt is not None and not field(usage, "input_tokens"))


def _from_the_clients_cache(response: Any) -> bool:
    hidden = field(response, "_hidden_params", "cache_hit")
    return hidden is True or any(field(response, mark) is True for mark in _CACHED)
