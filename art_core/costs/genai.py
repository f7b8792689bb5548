"""The default price book: genai-prices, imported when a price is first asked for."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

from art_core.costs.rates import TokenRates
from art_core.costs.usage import TokenUsage

log = logging.getLogger("art_core")

BATCH_DISCOUNT = 0.5
"""OpenAI, Anthropic and Google sell batch calls at half their price."""


@cache
def _library() -> Any:
    try:
        import genai_prices
    except ImportError:
        log.warning(
            "genai-prices is not installed, so API calls have no default prices. "
            "pip install 'art-core[prices]'"
        )
        return None
    return genai_prices


@cache
def provider_at(base_url: str) -> str | None:
    """Return the provider whose API is at an address; None for one that the book does not know."""
    library = _library()
    if library is None:
        return None
    try:
        found = library.data_snapshot.get_snapshot().find_provider(None, None, base_url)
    except LookupError:
        return None
    return str(found.id)


def book_rates(provider: str, model: str, usage: TokenUsage | None) -> TokenRates | None:
    """Return the book's rates for a call; None for a model that it can't price.

    The service tier and the prompt's length choose among a model's prices; batch calls cost half.
    """
    library = _library()
    if library is None:
        return None
    usage = usage or TokenUsage()
    tier = usage.service_tier
    context = {"service_tier": tier} if tier and tier != "batch" else None
    try:
        found = library.calc_price(
            library.Usage(input_tokens=0), model, provider_id=provider, price_context=context
        )
    except LookupError:
        return None
    discount = BATCH_DISCOUNT if tier == "batch" else 1.0

    def rate(name: str) -> float | None:
        value = getattr(found.model_price, name)
        return None if value is None else float(_at(value, usage.input_tokens)) * discount

    prompt, answer = rate("input_mtok"), rate("output_mtok")
    search = getattr(found.model_price, "web_searches_kcount", None)
    if not prompt and not answer:
        return None
    return TokenRates(
        input_per_million=prompt or 0.0,
        output_per_million=answer or 0.0,
        cache_read_per_million=rate("cache_read_mtok"),
        cache_write_per_million=rate("cache_write_mtok"),
        cache_write_1h_per_million=rate("cache_write_1h_mtok"),
        # By the search, in a batch too.
        web_search_per_thousand=None if search is None else float(_at(search, usage.input_tokens)),
        source=f"genai-prices {library.__version__}: {found.provider.id}/{found.model.id}",
    )


def _at(value: Any, input_tokens: int) -> Any:
    """Return a price, or the one of the highest tier that the whole prompt has crossed."""
    if not hasattr(value, "tiers"):
        return value
    crossed = [tier.price for tier in value.tiers if input_tokens > tier.start]
    return crossed[-1] if crossed else value.base
