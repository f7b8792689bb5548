"""Where a price comes from: what was given with the call, then registered, then the plugins'
hooks.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import attrs

from art_core.base.errors import ConfigError, PricingError
from art_core.base.numbers import number_or_none, text_of
from art_core.hooks.host import Plugins
from art_core.metrics.rates import TokenRates, price, price_gpu
from art_core.metrics.readers import read_usage
from art_core.metrics.readers.reported import REPORTING
from art_core.metrics.usage import GpuTime, TokenUsage
from art_core.prices.table import gpu_rate_origin

log = logging.getLogger("art_core")

RATE_NAMES = (
    "prompt_per_million",
    "completion_per_million",
    "cached_prompt_per_million",
    "cache_creation_per_million",
    "cache_creation_1h_per_million",
    "cache_read_per_million",
    "train_per_million",
    "web_search_per_thousand",
    "file_search_per_thousand",
    "grounded_prompt_per_thousand",
    "input_audio_per_million",
    "output_audio_per_million",
    "cache_read_audio_per_million",
    "input_image_per_million",
    "output_image_per_million",
    "cache_read_image_per_million",
)


@attrs.define
class PriceBook:
    """Prices of one model's run. Says once what it cannot price."""

    plugins: Plugins
    _registered: dict[str, TokenRates] = attrs.field(factory=dict)
    _extractors: dict[str, Callable[[Any], float | None]] = attrs.field(factory=dict)
    _said: set[str] = attrs.field(factory=set)
    # Reentrant: a stream that is dropped while this is held may have something to say, too.
    _lock: threading.RLock = attrs.field(factory=threading.RLock, repr=False)

    def register(self, model: str, **per_million: float) -> None:
        """Set a model's prices; ConfigError for names other than those of `TokenRates.of`."""
        if not isinstance(model, str):
            raise ConfigError(f"prices are registered by a model's name, got {model!r:.80}")
        self._registered[model.lower()] = rates_of(per_million, source="registered")

    def register_extractor(self, provider: str, extract: Callable[[Any], float | None]) -> None:
        """Set a function that reads US dollars out of a provider's responses; None where they say
        nothing.
        """
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
        """Tell whether a call could be priced: by an extractor, by the provider itself, or by
        rates.
        """
        name = text_of(provider).lower()
        return (
            name in self._extractors or name in REPORTING or self.rates(provider, model) is not None
        )

    def require(self, provider: str, model: str) -> None:
        """Raise PricingError when nothing could price a call: before it is made, so that no money
        is spent.
        """
        if not self.can_price(provider, model):
            raise PricingError(
                f"no price is known for model {model!r} of provider {provider!r}",
                "Register one: model.metrics_builder().register_model_pricing"
                f"({model!r}, prompt_per_million=..., completion_per_million=...).",
            )

    def usage(self, response: Any, provider: str) -> TokenUsage:
        """Read a response's tokens, and the cost if an extractor or the provider says it.

        An extractor that fails is said once, and the tokens count.
        """
        usage = self.tokens(response, provider) or TokenUsage()
        try:
            said = self.extracted(response, provider)
        except Exception as error:
            self.say_once(
                f"the cost extractor of {provider!r} failed ({type(error).__name__}: {error}); "
                "its calls are priced by their tokens"
            )
            said = None
        return usage if said is None else attrs.evolve(usage, cost_usd=said)

    def tokens(self, response: Any, provider: str) -> TokenUsage | None:
        """Read the tokens of a response, or of a chunk of one: a plugin does, else the core."""
        return self.plugins.usage(response, provider) or read_usage(response)

    def extracted(self, response: Any, provider: str) -> float | None:
        """Read US dollars by the provider's extractor; None without one, or where it says none."""
        extract = self._extractors.get(text_of(provider).lower())
        return None if extract is None else extract(response)

    def believed(self, provider: str, usage: TokenUsage) -> TokenUsage:
        """Return a usage without a cost that can't be one, not finite or negative; said once."""
        if usage.cost_usd is None:
            return usage
        usd = number_or_none(usage.cost_usd)
        if usd is not None and usd >= 0:
            return attrs.evolve(usage, cost_usd=usd)
        self.say_once(f"{provider!r} says that a call cost {usage.cost_usd!r} US dollars: unused")
        return attrs.evolve(usage, cost_usd=None)

    def quote(
        self, provider: str, model: str, usage: TokenUsage, explicit: TokenRates | None = None
    ) -> tuple[float | None, TokenRates | None]:
        """US dollars of a call and the rates that gave them; (None, ...), said once, when unpriced.

        The provider's own figure wins over any rates.
        """
        if usage.cost_usd is not None:
            return usage.cost_usd, None
        rates = explicit or self.rates(provider, model, usage)
        if rates is None:
            self.say_once(
                f"unpriced: calls to {model!r} of {provider!r}{_under(usage)}; "
                "their cost is not in costs/all"
            )
            return None, None
        if not rates.cover(usage):
            self.say_once(
                f"unpriced: tokens to train {model!r} of {provider!r} have no train_per_million"
            )
            return None, rates
        if not usage.total_tokens:
            self.say_once(
                f"unpriced: a response of {model!r} of {provider!r} says nothing of its tokens. "
                "OpenAI's chat streams do with stream_options={'include_usage': True}; "
                "response_getter= takes a response out of what a tracked function returns"
            )
            return None, rates
        return price(usage, rates), rates

    def unread(
        self, provider: str, model: str, usage: TokenUsage, rates: TokenRates | None
    ) -> tuple[str, ...]:
        """Return what is not in the price of a call, said once: fields of its usage that nobody
        understood, and searches without a price. Nothing, where the provider named the cost.
        """
        if usage.cost_usd is not None:
            return ()
        missing = (*usage.unread, *(rates.lacking(usage) if rates else ()))
        if missing:
            self.say_once(
                f"partly priced: calls to {model!r} of {provider!r} were billed for more than is "
                f"understood here: {', '.join(missing)}. The rest of them is priced"
            )
        return missing

    def price(
        self, provider: str, model: str, usage: TokenUsage, explicit: TokenRates | None = None
    ) -> float | None:
        """US dollars of a call, None when unpriced; see `quote`."""
        return self.quote(provider, model, usage, explicit)[0]

    def quote_gpu(
        self, time: GpuTime, remedy: str | None = None
    ) -> tuple[float | None, dict[str, Any]]:
        """Return US dollars of devices held, and `usd_per_hour` of one with its `source` and, of a
        dated list, `as_of`. Without a price it is (None, {}); a warning, once, names the remedy.

        The price given with the time wins over the plugins'.
        """
        rate, origin = time.usd_per_hour, {"source": "explicit"}
        if rate is None and (rate := self.plugins.gpu_rate(time.device)) is not None:
            origin = gpu_rate_origin(time.device, rate)
        if rate is None:
            remedy = remedy or "Give it with the time: usd_per_hour=..."
            self.say_once(
                f"no price is known for device {time.device!r}: rows have no costs/gpu. {remedy}"
            )
            return None, {}
        return price_gpu(time, rate), {"usd_per_hour": rate} | origin

    def say_once(self, text: str) -> None:
        """Warn, but not twice."""
        with self._lock:
            if text in self._said:
                return
            self._said.add(text)
        log.warning(text)


def bare_name(provider: str, model: str) -> str:
    """Return a model's name without the prefix of its provider, in upper or lower case."""
    prefix = f"{provider}/"
    return model[len(prefix) :] if model.lower().startswith(prefix.lower()) else model


def _under(usage: TokenUsage) -> str:
    terms = [f"{name.replace('_', ' ')} {value!r}" for name, value in usage.terms.items()]
    return f" in {' and '.join(terms)}" if terms else ""


def rates_of(per_million: dict[str, float], *, source: str) -> TokenRates:
    """Build rates from keyword arguments; ConfigError names the ones that are missing or
    unknown.
    """
    missing = {"prompt_per_million", "completion_per_million"} - per_million.keys()
    extra = per_million.keys() - set(RATE_NAMES)
    if missing or extra:
        raise ConfigError(
            f"prices need prompt_per_million and completion_per_million, got {sorted(per_million)}",
            f"Known: {', '.join(RATE_NAMES)}.",
        )
    return TokenRates.of(**per_million, source=source)
