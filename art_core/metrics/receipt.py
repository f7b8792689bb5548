"""Receipts: what was used, at which rates, and what it cost.

They are kept in the rows of their costs, so that a run can be priced again later.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
from attrs.validators import optional

from art_core.base.errors import ConfigError
from art_core.base.numbers import (
    as_count,
    as_number,
    as_number_or_none,
    check_count,
    check_price,
    check_seconds,
    count_of,
    price_of,
    seconds_of,
    text_of,
    to_texts,
)


def count() -> Any:
    """Return an attrs field for a count, 0 by default."""
    return attrs.field(default=0, converter=as_count, validator=check_count)


@attrs.frozen(kw_only=True)
class TokenUsage:
    """Tokens of one call. `input_tokens` is the whole prompt, cache reads and writes included.

    `cache_write_1h_tokens` is the part of `cache_write_tokens` that is cached for an hour. Tokens
    of audio and images are parts of the prompt, of its cache reads and of the answer.
    `train_tokens` are those that a hosted training service trained on, in no other count.
    `web_searches` and `file_searches` were made by the provider and are billed by the search;
    `grounded_prompts` is 1 when there were web searches, for models that bill by the prompt.
    `service_tier` is the tier that the provider reports ("flex", "priority", "batch"), `speed` and
    `geography` likewise ("fast", "us"). `cost_usd` is the cost that the provider itself reports; it
    wins over any price. `unread` names parts of the bill that were not understood. Counts may be
    numbers of NumPy or torch; ConfigError names a value that is not a count.
    """

    input_tokens: int = count()
    output_tokens: int = count()
    cache_read_tokens: int = count()
    cache_write_tokens: int = count()
    cache_write_1h_tokens: int = count()
    train_tokens: int = count()
    web_searches: int = count()
    input_audio_tokens: int = count()
    output_audio_tokens: int = count()
    cache_read_audio_tokens: int = count()
    input_image_tokens: int = count()
    output_image_tokens: int = count()
    cache_read_image_tokens: int = count()
    grounded_prompts: int = count()
    file_searches: int = count()
    service_tier: str | None = None
    speed: str | None = None
    geography: str | None = None
    cost_usd: float | None = None
    unread: tuple[str, ...] = attrs.field(default=(), converter=to_texts)

    @property
    def total_tokens(self) -> int:
        """Tokens of prompt and answer, and those trained on."""
        return self.input_tokens + self.output_tokens + self.train_tokens

    @property
    def terms(self) -> dict[str, str]:
        """Unusual terms that the price depends on: tier, speed and geography."""
        values = {name: getattr(self, name) for name in ("service_tier", "speed", "geography")}
        texts = {k: str(getattr(v, "value", v)).lower() for k, v in values.items() if v}
        return {name: text for name, text in texts.items() if text not in USUAL}


USUAL = {"default", "standard", "auto", "on_demand", "unspecified", "global", "not_available"}
"""Tiers, speeds and geographies that list prices are for."""
COUNTS = tuple(f.name for f in attrs.fields(TokenUsage) if f.default == 0)
"""The names of the counts of a TokenUsage."""


@attrs.frozen(kw_only=True)
class GpuTime:
    """Time of devices: `seconds` of `count` devices named `device`.

    `usd_per_hour` is the user's price of one device-hour. Without it the price hooks are asked.
    """

    device: str = attrs.field(converter=text_of)
    seconds: float = attrs.field(converter=as_number, validator=check_seconds)
    count: int = attrs.field(default=1, converter=as_count, validator=check_count)
    usd_per_hour: float | None = attrs.field(
        default=None, converter=as_number_or_none, validator=optional(check_price)
    )


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


@attrs.frozen(kw_only=True)
class Receipt:
    """Calls of one kind, or time of one device, in one row; those that differ in numbers only are
    added up.

    `usd` was booked at `leaf`; it is None when the calls had no price. `rates` are US dollars per
    million tokens, or per device-hour. The provider itself named the cost if `reported`. `unread`
    names the parts of the bill that are not in `usd`.
    """

    leaf: str
    item: str = attrs.field(converter=text_of)
    provider: str = attrs.field(default="", converter=text_of)
    tier: str | None = attrs.field(default=None, converter=attrs.converters.optional(text_of))
    speed: str | None = attrs.field(default=None, converter=attrs.converters.optional(text_of))
    geography: str | None = attrs.field(default=None, converter=attrs.converters.optional(text_of))
    calls: int = 1
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    train_tokens: int = 0
    web_searches: int = 0
    input_audio_tokens: int = 0
    output_audio_tokens: int = 0
    cache_read_audio_tokens: int = 0
    input_image_tokens: int = 0
    output_image_tokens: int = 0
    cache_read_image_tokens: int = 0
    grounded_prompts: int = 0
    file_searches: int = 0
    device_seconds: float = 0.0
    usd: float | None = None
    reported: bool = False
    unread: tuple[str, ...] = attrs.field(default=(), converter=to_texts)
    rates: dict[str, Any] = attrs.field(factory=dict)

    @property
    def kind(self) -> tuple[Any, ...]:
        """Receipts of one kind may be added up."""
        priced = self.usd is not None
        rates = tuple(sorted((k, str(v)) for k, v in self.rates.items()))
        terms = self.tier, self.speed, self.geography
        kind = self.leaf, self.item, self.provider, *terms, priced, self.reported
        return *kind, self.unread, rates

    def plus(self, other: Receipt) -> Receipt:
        """Return the sum of two receipts of one kind."""
        sums = {name: getattr(self, name) + getattr(other, name) for name in _NUMBERS}
        usd = None if self.usd is None else self.usd + (other.usd or 0.0)
        return attrs.evolve(self, **sums, usd=usd)

    @property
    def usage(self) -> TokenUsage:
        """The tokens, to be priced again."""
        counts = {name: getattr(self, name) for name in COUNTS}
        return TokenUsage(
            **counts, service_tier=self.tier, speed=self.speed, geography=self.geography
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the receipt as JSON values, without those that have their default."""
        default = {field.name: field.default for field in attrs.fields(Receipt)}
        values = attrs.asdict(self)
        return {k: v for k, v in values.items() if v != default[k] and v != {}}


_NUMBERS = ("calls", "device_seconds", *COUNTS)


def token_receipt(
    leaf: str,
    provider: str,
    model: str,
    usage: TokenUsage,
    usd: float | None,
    rates: TokenRates | None,
) -> Receipt:
    """Make the receipt of one API call."""
    known = attrs.asdict(rates) if rates and usage.cost_usd is None else {}
    return Receipt(
        leaf=leaf,
        item=model,
        provider=provider,
        tier=usage.service_tier,
        speed=usage.speed,
        geography=usage.geography,
        unread=usage.unread,
        **{name: getattr(usage, name) for name in COUNTS},
        usd=usd,
        reported=usage.cost_usd is not None,
        rates={name: value for name, value in known.items() if value is not None},
    )


def gpu_receipt(leaf: str, time: GpuTime, usd: float | None, rates: Mapping[str, Any]) -> Receipt:
    """Make the receipt of device time; `device_seconds` counts each of the devices."""
    return Receipt(
        leaf=leaf,
        item=time.device,
        device_seconds=time.seconds * time.count,
        usd=usd,
        rates=dict(rates),
    )


def receipt_of(stored: Mapping[str, Any]) -> Receipt:
    """Read a receipt from a row; null stands for the default.

    Raises TypeError for unknown fields and invalid values.
    """
    receipt = Receipt(**{name: value for name, value in stored.items() if value is not None})
    if not isinstance(receipt.rates, dict) or not isinstance(receipt.leaf, str):
        raise TypeError("a receipt's rates are an object, and its leaf is a text")
    try:
        counts: dict[str, Any] = {
            name: count_of(name, getattr(receipt, name)) for name in ("calls", *COUNTS)
        }
        seconds = seconds_of("device_seconds", receipt.device_seconds)
        usd = None if receipt.usd is None else price_of("usd", receipt.usd)
    except ConfigError as error:
        raise TypeError(str(error)) from error
    return attrs.evolve(receipt, **counts, device_seconds=seconds, usd=usd)
