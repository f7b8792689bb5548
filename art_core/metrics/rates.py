"""Prices of tokens and of device time, and the US dollars of a usage at these prices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
from attrs.validators import optional

from art_core.base.errors import ConfigError
from art_core.base.numbers import as_number, as_number_or_none, check_price
from art_core.metrics.usage import GpuTime, TokenUsage


def _optional_rate() -> Any:
    return attrs.field(default=None, converter=as_number_or_none, validator=optional(check_price))


@attrs.frozen(kw_only=True)
class TokenRates:
    """US dollars per million tokens, and the source of the price.

    Cache reads and writes cost as much as fresh prompt tokens unless given, and writes for an hour
    as much as other writes. Tokens of images cost as much as text unless given; so do those of
    audio, and the call counts as partly priced.
    Tokens to train on have no price unless `train_per_million` is given. At a hosted training
    service, prefill is input, cached prefill is a cache read, and sampling is output. Searches by
    the provider cost US dollars per thousand. `as_of` is the date of the price list.
    """

    input_per_million: float = attrs.field(converter=as_number, validator=check_price)
    output_per_million: float = attrs.field(converter=as_number, validator=check_price)
    cache_read_per_million: float | None = _optional_rate()
    cache_write_per_million: float | None = _optional_rate()
    cache_write_1h_per_million: float | None = _optional_rate()
    train_per_million: float | None = _optional_rate()
    web_search_per_thousand: float | None = _optional_rate()
    file_search_per_thousand: float | None = _optional_rate()
    grounded_prompt_per_thousand: float | None = _optional_rate()
    input_audio_per_million: float | None = _optional_rate()
    output_audio_per_million: float | None = _optional_rate()
    cache_read_audio_per_million: float | None = _optional_rate()
    input_image_per_million: float | None = _optional_rate()
    output_image_per_million: float | None = _optional_rate()
    cache_read_image_per_million: float | None = _optional_rate()
    source: str = "explicit"
    as_of: str | None = None

    @classmethod
    def of(
        cls,
        *,
        prompt_per_million: float,
        completion_per_million: float,
        cached_prompt_per_million: float | None = None,
        cache_creation_per_million: float | None = None,
        cache_creation_1h_per_million: float | None = None,
        cache_read_per_million: float | None = None,
        source: str = "explicit",
        **others: Any,
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
            cache_write_1h_per_million=cache_creation_1h_per_million,
            source=source,
            **others,
        )

    def scaled(self, factor: float, source: str) -> TokenRates:
        """Return all rates multiplied by a factor, such as 0.8 for a discount of 20 %."""
        names = [field.name for field in attrs.fields(TokenRates) if "_per_" in field.name]
        rates: dict[str, Any] = {name: getattr(self, name) for name in names}
        scaled = {name: rate * factor for name, rate in rates.items() if rate is not None}
        return attrs.evolve(self, source=source, **scaled)

    def cover(self, usage: TokenUsage) -> bool:
        """Return whether every kind of token in a usage has a price."""
        return not usage.train_tokens or self.train_per_million is not None

    def lacking(self, usage: TokenUsage) -> tuple[str, ...]:
        """Return the counts of a usage that have no price of their own: searches and audio."""
        by_prompt = self.grounded_prompt_per_thousand is not None and usage.grounded_prompts
        without = {
            "web_searches": self.web_search_per_thousand is None and not by_prompt,
            "file_searches": self.file_search_per_thousand is None,
            "input_audio_tokens": self.input_audio_per_million is None,
            "output_audio_tokens": self.output_audio_per_million is None,
        }
        return tuple(name for name, lacks in without.items() if lacks and getattr(usage, name))


RATE_NAMES = (
    "prompt_per_million",
    "completion_per_million",
    "cached_prompt_per_million",
    "cache_creation_per_million",
    "cache_creation_1h_per_million",
    "cache_read_per_million",
    *[field.name for field in attrs.fields(TokenRates)[5:-2]],
)
"""Names of prices that users give: the parameters of `TokenRates.of`, and fields for the others."""


def rates_of(prices: Mapping[str, float], *, source: str) -> TokenRates:
    """Make rates of prices by name; ConfigError lists the names that are missing or unknown."""
    missing = set(RATE_NAMES[:2]) - prices.keys()
    if missing or prices.keys() - set(RATE_NAMES):
        raise ConfigError(
            f"prices need prompt_per_million and completion_per_million, got {sorted(prices)}",
            f"Known: {', '.join(RATE_NAMES)}.",
        )
    return TokenRates.of(**prices, source=source)


def price(usage: TokenUsage, rates: TokenRates) -> float:
    """US dollars for tokens at rates that cover them, and for searches that have a price."""
    parts = (*_prompt(usage, rates), *_answer(usage, rates))
    return sum(count * rate for count, rate in parts) / 1e6 + _searches(usage, rates)


def _prompt(usage: TokenUsage, rates: TokenRates) -> Iterator[tuple[int, float]]:
    """Yield the parts of the prompt, each with its rate."""
    read_audio, read_image, read = _split(
        usage.cache_read_tokens, usage.cache_read_audio_tokens, usage.cache_read_image_tokens
    )
    audio, image, fresh = _split(
        usage.input_tokens - usage.cache_read_tokens - usage.cache_write_tokens,
        usage.input_audio_tokens - read_audio,
        usage.input_image_tokens - read_image,
    )
    read_rate = _first(rates.cache_read_per_million, rates.input_per_million)
    write_rate = _first(rates.cache_write_per_million, rates.input_per_million)
    yield fresh, rates.input_per_million
    yield audio, _first(rates.input_audio_per_million, rates.input_per_million)
    yield image, _first(rates.input_image_per_million, rates.input_per_million)
    yield read, read_rate
    yield read_audio, _first(rates.cache_read_audio_per_million, read_rate)
    yield read_image, _first(rates.cache_read_image_per_million, read_rate)
    yield max(0, usage.cache_write_tokens - usage.cache_write_1h_tokens), write_rate
    yield usage.cache_write_1h_tokens, _first(rates.cache_write_1h_per_million, write_rate)


def _answer(usage: TokenUsage, rates: TokenRates) -> Iterator[tuple[int, float]]:
    """Yield the parts of the answer, and the tokens trained on, each with its rate."""
    audio, image, text = _split(
        usage.output_tokens, usage.output_audio_tokens, usage.output_image_tokens
    )
    yield text, rates.output_per_million
    yield audio, _first(rates.output_audio_per_million, rates.output_per_million)
    yield image, _first(rates.output_image_per_million, rates.output_per_million)
    yield usage.train_tokens, rates.train_per_million or 0.0


def _searches(usage: TokenUsage, rates: TokenRates) -> float:
    web = usage.web_searches * (rates.web_search_per_thousand or 0.0)
    if usage.grounded_prompts and rates.grounded_prompt_per_thousand is not None:
        web = usage.grounded_prompts * rates.grounded_prompt_per_thousand
    return (web + usage.file_searches * (rates.file_search_per_thousand or 0.0)) / 1e3


def _split(whole: int, audio: int, image: int) -> tuple[int, int, int]:
    """Return the tokens of audio, of images and of text in a whole."""
    whole = max(0, whole)
    audio = min(max(0, audio), whole)
    image = min(max(0, image), whole - audio)
    return audio, image, whole - audio - image


def _first(rate: float | None, otherwise: float) -> float:
    return otherwise if rate is None else rate


def price_gpu(time: GpuTime, usd_per_hour: float) -> float:
    """US dollars for devices held: seconds x count / 3600 x the price of one device-hour."""
    return time.seconds * time.count / 3600.0 * usd_per_hour
