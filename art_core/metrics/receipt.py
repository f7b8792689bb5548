"""Receipts: the calls and device time behind a cost leaf, and the price that was used.

Receipts are kept in the rows of their costs, so that a run can be priced again later.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from art_core.base.errors import ConfigError
from art_core.base.numbers import count_of, price_of, seconds_of, text_of, to_texts
from art_core.metrics.rates import TokenRates
from art_core.metrics.usage import COUNTS, GpuTime, TokenUsage


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
