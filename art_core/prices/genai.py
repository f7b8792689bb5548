"""The default price book of API models: genai-prices, imported when it is first asked."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

from art_core.metrics.rates import TokenRates
from art_core.metrics.usage import TokenUsage
from art_core.prices.table import read_table

log = logging.getLogger("art_core")


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
    """Return the book's rates for a call; None for a model, or terms of the call, without a price.

    The prompt's length and the terms of the call choose among a model's prices. For terms that the
    book does not have, the price is multiplied by their factor in the term table.
    """
    library = _library()
    if library is None:
        return None
    usage = usage or TokenUsage()
    found = _found(library, provider, model, {})
    if found is None:
        return None
    listed, factor = _terms(found, usage)
    if factor is None:
        return None
    if listed:
        found = _found(library, provider, model, listed)

    def rate(name: str, times: float = factor) -> float | None:
        value = getattr(found.model_price, name, None)
        return None if value is None else float(_at(value, usage.input_tokens)) * times

    prompt, answer = rate("input_mtok"), rate("output_mtok")
    if not prompt and not answer:
        return None
    # Searches have no discount in a batch.
    search = rate("web_searches_kcount", 1.0)
    terms = read_table("term")
    starts = terms["searches_billed_by_prompt"].get(found.provider.id, ())
    by_prompt = found.model.id.startswith(tuple(starts))
    in_audio, out_audio = rate("input_audio_mtok"), rate("output_audio_mtok")
    if in_audio is None and found.provider.id in terms["audio_prompts_billed_as_text"]:
        in_audio = prompt
    return TokenRates(
        input_per_million=prompt or 0.0,
        output_per_million=answer or 0.0,
        cache_read_per_million=rate("cache_read_mtok"),
        cache_write_per_million=rate("cache_write_mtok"),
        cache_write_1h_per_million=rate("cache_write_1h_mtok"),
        input_audio_per_million=in_audio,
        output_audio_per_million=out_audio,
        cache_read_audio_per_million=rate("cache_audio_read_mtok"),
        input_image_per_million=rate("input_image_mtok"),
        output_image_per_million=rate("output_image_mtok"),
        cache_read_image_per_million=rate("cache_image_read_mtok"),
        web_search_per_thousand=None if by_prompt else search,
        grounded_prompt_per_thousand=search if by_prompt else None,
        file_search_per_thousand=rate("storage_searches_kcount", 1.0),
        source=f"genai-prices {library.__version__}: {found.provider.id}/{found.model.id}",
    )


def _found(library: Any, provider: str, model: str, context: dict[str, str]) -> Any:
    try:
        return library.calc_price(
            library.Usage(input_tokens=0),
            model,
            provider_id=provider.lower(),
            price_context=context or None,
        )
    except LookupError:
        return None


_NAMES = {"geography": "inference_geo"}


def _terms(found: Any, usage: TokenUsage) -> tuple[dict[str, str], float | None]:
    """Return the terms that the book has prices for, and the factor of the others; None for an
    unknown factor.
    """
    listed: dict[str, str] = {}
    factor = 1.0
    for term, value in usage.terms.items():
        variants = getattr(found.model, "price_variants", None) or ()
        batch = term == "service_tier" and value == "batch"
        context = {"processing": "batch"} if batch else {_NAMES.get(term, term): value}
        if any(variant.when == context for variant in variants):
            listed |= context
            continue
        known = _factor(found.provider.id, found.model.id, term, value)
        if known is None:
            return {}, None
        factor *= known
    return listed, factor


def _factor(provider: str, model: str, term: str, value: str) -> float | None:
    """Return the factor on the list price of tokens; None when it is not known."""
    for entry in read_table("term")["factors"]:
        if entry["provider"] == provider and entry.get(term) == value:
            starts = entry.get("models")
            if starts is None or model.startswith(tuple(starts)):
                return float(entry["factor"])
    return None


def _at(value: Any, input_tokens: int) -> Any:
    """Return a price, or the one of the highest tier that the whole prompt has crossed."""
    if not hasattr(value, "tiers"):
        return value
    crossed = [tier.price for tier in value.tiers if input_tokens > tier.start]
    return crossed[-1] if crossed else value.base
