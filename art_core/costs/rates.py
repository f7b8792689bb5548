"""Prices of tokens and of device time, and the arithmetic that turns usage into US dollars."""

from __future__ import annotations

import attrs
from attrs.validators import optional

from art_core.costs.amounts import as_number, as_number_or_none, check_price
from art_core.costs.usage import GpuTime, TokenUsage


@attrs.frozen(kw_only=True)
class TokenRates:
    """US dollars per million tokens, and where the price is from.

    Cache reads and writes cost as much as fresh prompt tokens unless given, and writes kept for an
    hour as much as other writes. Tokens to train on have no price unless `train_per_million` is
    given; at a hosted training service, prefill is input and sampling is output. Web searches that
    the provider makes cost US dollars per thousand.
    """

    input_per_million: float = attrs.field(converter=as_number, validator=check_price)
    output_per_million: float = attrs.field(converter=as_number, validator=check_price)
    cache_read_per_million: float | None = attrs.field(
        default=None, converter=as_number_or_none, validator=optional(check_price)
    )
    cache_write_per_million: float | None = attrs.field(
        default=None, converter=as_number_or_none, validator=optional(check_price)
    )
    cache_write_1h_per_million: float | None = attrs.field(
        default=None, converter=as_number_or_none, validator=optional(check_price)
    )
    train_per_million: float | None = attrs.field(
        default=None, converter=as_number_or_none, validator=optional(check_price)
    )
    web_search_per_thousand: float | None = attrs.field(
        default=None, converter=as_number_or_none, validator=optional(check_price)
    )
    source: str = "explicit"

    @classmethod
    def of(
        cls,
        *,
        prompt_per_million: float,
        completion_per_million: float,
        cached_prompt_per_million: float | None = None,
        cache_creation_per_million: float | None = None,
        cache_read_per_million: float | None = None,
        train_per_million: float | None = None,
        source: str = "explicit",
    ) -> TokenRates:
        """Build rates from the names that `register_model_pricing` and `@track_api_cost` take."""
        read = (
            cached_prompt_per_million if cache_read_per_million is None else cache_read_per_million
        )
        return cls(
            input_per_million=prompt_per_million,
            output_per_million=completion_per_million,
            cache_read_per_million=read,
            cache_write_per_million=cache_creation_per_million,
            train_per_million=train_per_million,
            source=source,
        )

    def cover(self, usage: TokenUsage) -> bool:
        """Tell whether every kind of token in a usage has a price."""
        return not usage.train_tokens or self.train_per_million is not None


def price(usage: TokenUsage, rates: TokenRates) -> float:
    """US dollars for tokens at rates that cover them, and for web searches that have a price."""
    fresh = max(0, usage.input_tokens - usage.cache_read_tokens - usage.cache_write_tokens)
    short = max(0, usage.cache_write_tokens - usage.cache_write_1h_tokens)
    read_rate = _first(rates.cache_read_per_million, rates.input_per_million)
    write_rate = _first(rates.cache_write_per_million, rates.input_per_million)
    return (
        fresh * rates.input_per_million
        + usage.cache_read_tokens * read_rate
        + short * write_rate
        + usage.cache_write_1h_tokens * _first(rates.cache_write_1h_per_million, write_rate)
        + usage.output_tokens * rates.output_per_million
        + usage.train_tokens * (rates.train_per_million or 0.0)
    ) / 1e6 + usage.web_searches * (rates.web_search_per_thousand or 0.0) / 1e3


def _first(rate: float | None, otherwise: float) -> float:
    return otherwise if rate is None else rate


def price_gpu(time: GpuTime, usd_per_hour: float) -> float:
    """US dollars for devices held: seconds x count / 3600 x the price of one device-hour."""
    return time.seconds * time.count / 3600.0 * usd_per_hour
