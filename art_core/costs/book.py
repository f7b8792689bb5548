"""The price book of a run: given prices first, then registered ones, then those of plugins."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import attrs

from art_core.base.errors import ConfigError, PricingError
from art_core.base.numbers import number_or_none, text_of
from art_core.hooks.host import Plugins
from art_core.metrics.readers import REPORTING, read_usage
from art_core.metrics.receipt import (
    GpuTime,
    Receipt,
    TokenRates,
    TokenUsage,
    gpu_receipt,
    price,
    price_gpu,
    rates_of,
    token_receipt,
)
from art_core.prices.table import gpu_rate_origin

log = logging.getLogger("art_core")


@attrs.define
class PriceBook:
    """Prices of one model's run. It warns once of each call that has no price."""

    plugins: Plugins
    _registered: dict[str, TokenRates] = attrs.field(factory=dict)
    _extractors: dict[str, Callable[[Any], float | None]] = attrs.field(factory=dict)
    _warned: set[str] = attrs.field(factory=set)
    # Reentrant: a stream that is dropped while this is held may warn, too.
    _lock: threading.RLock = attrs.field(factory=threading.RLock, repr=False)

    def register(self, model: str, **per_million: float) -> None:
        """Set a model's prices; ConfigError for names other than those of `TokenRates.of`."""
        if not isinstance(model, str):
            raise ConfigError(f"prices are registered by a model's name, got {model!r:.80}")
        self._registered[model.lower()] = rates_of(per_million, source="registered")

    def register_extractor(self, provider: str, extract: Callable[[Any], float | None]) -> None:
        """Set a function that reads US dollars from a provider's responses; None without any."""
        self._extractors[provider.lower()] = extract

    def rates(
        self, provider: str, model: str, usage: TokenUsage | None = None
    ) -> TokenRates | None:
        """Return the rates of a model: registered, with or without its provider's prefix, else a
        plugin's. Upper and lower case are the same.
        """
        provider, model = text_of(provider), text_of(model)
        bare = bare_name(provider, model)
        for name in (model, f"{provider}/{bare}", bare):
            if name.lower() in self._registered:
                return self._registered[name.lower()]
        return self.plugins.token_rates(provider, bare, usage)

    def can_price(self, provider: str, model: str) -> bool:
        """Return whether an extractor, the provider itself, or rates can price a call."""
        name = text_of(provider).lower()
        return (
            name in self._extractors or name in REPORTING or self.rates(provider, model) is not None
        )

    def require(self, provider: str, model: str) -> None:
        """Raise PricingError, before money is spent, when nothing can price a call."""
        if not self.can_price(provider, model):
            raise PricingError(
                f"no price is known for model {model!r} of provider {provider!r}",
                "Register one: model.metrics_builder().register_model_pricing"
                f"({model!r}, prompt_per_million=..., completion_per_million=...).",
            )

    def usage(self, response: Any, provider: str) -> TokenUsage:
        """Read a response's tokens, and its cost if an extractor or the provider reports it.

        If an extractor fails, there is one warning, and the tokens are priced.
        """
        usage = self.tokens(response, provider) or TokenUsage()
        try:
            usd = self.extracted(response, provider)
        except Exception as error:
            self.warn_once(
                f"the cost extractor of {provider!r} failed ({type(error).__name__}: {error}); "
                "its calls are priced by their tokens"
            )
            usd = None
        return usage if usd is None else attrs.evolve(usage, cost_usd=usd)

    def tokens(self, response: Any, provider: str) -> TokenUsage | None:
        """Read the tokens of a response or a chunk: by a plugin, else by the core's readers."""
        return self.plugins.usage(response, provider) or read_usage(response)

    def extracted(self, response: Any, provider: str) -> float | None:
        """Read US dollars by the provider's extractor; None without one, or if it finds none."""
        extract = self._extractors.get(text_of(provider).lower())
        return None if extract is None else extract(response)

    def believed(self, provider: str, usage: TokenUsage) -> TokenUsage:
        """Return a usage without an invalid cost (not finite or negative), with one warning."""
        if usage.cost_usd is None:
            return usage
        usd = number_or_none(usage.cost_usd)
        if usd is not None and usd >= 0:
            return attrs.evolve(usage, cost_usd=usd)
        self.warn_once(f"{provider!r} reports a cost of {usage.cost_usd!r} US dollars: ignored")
        return attrs.evolve(usage, cost_usd=None)

    def bill(
        self, provider: str, model: str, usage: TokenUsage, explicit: TokenRates | None = None
    ) -> Receipt:
        """Price a call and return its receipt, which has no leaf yet."""
        usage = self.believed(provider, usage)
        usd, rates = self.quote(provider, model, usage, explicit)
        unread = self.unread(provider, model, usage, rates) if usd is not None else ()
        return token_receipt("", provider, model, attrs.evolve(usage, unread=unread), usd, rates)

    def quote(
        self, provider: str, model: str, usage: TokenUsage, explicit: TokenRates | None = None
    ) -> tuple[float | None, TokenRates | None]:
        """Return US dollars of a call and their rates; (None, ...) and one warning when unpriced.

        The cost that the provider reports wins over any rates.
        """
        if usage.cost_usd is not None:
            return usage.cost_usd, None
        rates = explicit or self.rates(provider, model, usage)
        if rates is None:
            self.warn_once(
                f"unpriced: calls to {model!r} of {provider!r}{_under(usage)}; "
                "their cost is not in costs/all"
            )
            return None, None
        if not rates.cover(usage):
            self.warn_once(
                f"unpriced: tokens to train {model!r} of {provider!r} have no train_per_million"
            )
            return None, rates
        if not usage.total_tokens:
            self.warn_once(
                f"unpriced: a response of {model!r} of {provider!r} has no token counts. "
                "OpenAI's chat streams have them with stream_options={'include_usage': True}; "
                "response_getter= takes a response out of what a tracked function returns"
            )
            return None, rates
        return price(usage, rates), rates

    def unread(
        self, provider: str, model: str, usage: TokenUsage, rates: TokenRates | None
    ) -> tuple[str, ...]:
        """Return parts of a call that are not priced, with one warning: unknown fields of its usage
        and searches without a price. Nothing, if the provider reports the cost.
        """
        if usage.cost_usd is not None:
            return ()
        missing = (*usage.unread, *(rates.lacking(usage) if rates else ()))
        if missing:
            self.warn_once(
                f"partly priced: calls to {model!r} of {provider!r} were billed for more than is "
                f"understood here: {', '.join(missing)}. The rest of them is priced"
            )
        return missing

    def price(
        self, provider: str, model: str, usage: TokenUsage, explicit: TokenRates | None = None
    ) -> float | None:
        """US dollars of a call, None when unpriced; see `quote`."""
        return self.quote(provider, model, usage, explicit)[0]

    def bill_gpu(self, time: GpuTime, remedy: str | None = None) -> Receipt:
        """Price device time and return its receipt, which has no leaf yet; see `quote_gpu`."""
        return gpu_receipt("", time, *self.quote_gpu(time, remedy))

    def quote_gpu(
        self, time: GpuTime, remedy: str | None = None
    ) -> tuple[float | None, dict[str, Any]]:
        """Return US dollars of device time, and `usd_per_hour` with its `source` and, from a dated
        table, `as_of`. Without a price, return (None, {}) and warn once with the remedy.

        The price given with the time wins over the plugins'.
        """
        rate, origin = time.usd_per_hour, {"source": "explicit"}
        if rate is None and (rate := self.plugins.gpu_rate(time.device)) is not None:
            origin = gpu_rate_origin(time.device, rate)
        if rate is None:
            remedy = remedy or "Give it with the time: usd_per_hour=..."
            self.warn_once(
                f"no price is known for device {time.device!r}: rows have no costs/gpu. {remedy}"
            )
            return None, {}
        return price_gpu(time, rate), {"usd_per_hour": rate} | origin

    def warn_once(self, text: str) -> None:
        """Log a warning, unless it was logged before."""
        with self._lock:
            if text in self._warned:
                return
            self._warned.add(text)
        log.warning(text)


def bare_name(provider: str, model: str) -> str:
    """Return a model's name without the prefix of its provider, in upper or lower case."""
    prefix = f"{provider}/"
    return model[len(prefix) :] if model.lower().startswith(prefix.lower()) else model


def _under(usage: TokenUsage) -> str:
    terms = [f"{name.replace('_', ' ')} {value!r}" for name, value in usage.terms.items()]
    return f" in {' and '.join(terms)}" if terms else ""
