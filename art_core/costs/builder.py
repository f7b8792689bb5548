"""The metrics builder adds costs, times and counts to the ledger, in the context of a split.

Its price book bills calls: at given prices, else registered ones, else those of plugins.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import Any

import attrs

from art_core.base.errors import ConfigError, MetricError, PricingError
from art_core.base.numbers import number_or_none, text_of
from art_core.base.spending import note_spent
from art_core.base.threads import in_scope
from art_core.budgets.hold import Hold
from art_core.budgets.run_budget import RunBudget
from art_core.costs.ledger import UNPRICED, Ledger
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
from art_core.metrics.taxonomy import number
from art_core.prices.tables import gpu_rate_origin

log = logging.getLogger("art_core")

active_builder: ContextVar[MetricsBuilder | None] = ContextVar("art_active_builder", default=None)


@attrs.frozen(eq=False)
class MetricsBuilder:
    """Adds to the next row of a model: `model.metrics_builder()`, or with a context, "train" or
    "eval".

    Samples of one step combine by the rule of the metric's spec: `costs/`, `time/step_`,
    `data/step_` and idle times add up, most others are averaged.
    """

    ledger: Ledger = attrs.field(repr=False)
    prices: PriceBook = attrs.field(repr=False)
    context: str = ""

    @property
    def budget(self) -> RunBudget | None:
        """The run's budget, if it has one."""
        return self.ledger.budget

    @contextmanager
    def measure(self, key: str) -> Iterator[None]:
        """Add the seconds spent in the block to a key, such as `time/step_actor_s`."""
        self._key(key)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add_metric(key, time.perf_counter() - start)

    def add_metric(self, key: str, value: float) -> None:
        """Add a sample to a key; a bare key goes under the context's split."""
        if isinstance(key, str) and key.startswith("costs/"):
            self.add_cost(key, value)
        else:
            self.ledger.add(self.context, self._key(key), number(key, value))

    def add_cost(self, path: str, usd: float) -> None:
        """Add US dollars to a cost leaf: `train/llm_judge` means `costs/train/llm_judge`."""
        if type(usd).__name__ in {"bool", "bool_"}:
            raise MetricError(f"cost {path!r} must be a number of US dollars, got {usd!r}")
        value = number(path, usd)
        if value < 0:
            raise MetricError(f"a cost can't be negative: {path!r} {usd!r}")
        self.ledger.add_cost(self.context, path, value)

    def add_data(
        self,
        *,
        step_num_scenarios: float | None = None,
        step_actor_tokens: float | None = None,
        scenario_ids: Iterable[Any] = (),
    ) -> None:
        """Add counts of the step, and ids of scenarios for `data/cum/num_unique_scenarios`."""
        if isinstance(scenario_ids, str):
            raise ConfigError(
                f"scenario_ids must be a collection of ids, got the string {scenario_ids!r}"
            )
        self._add_given(
            "data/", step_num_scenarios=step_num_scenarios, step_actor_tokens=step_actor_tokens
        )
        self.ledger.add_scenarios(text_of(i) for i in scenario_ids)

    def add_user_timing(
        self,
        *,
        step_wall_s: float | None = None,
        step_actor_s: float | None = None,
        step_eval_s: float | None = None,
    ) -> None:
        """Add seconds that your own code measured."""
        self._add_given(
            "time/", step_wall_s=step_wall_s, step_actor_s=step_actor_s, step_eval_s=step_eval_s
        )

    def add_idle_times(
        self, *, step_trainer_idle_s: float | None = None, step_actor_idle_s: float | None = None
    ) -> None:
        """Add seconds in which trainer or actor waited."""
        self._add_given(
            "throughput/",
            step_trainer_idle_s=step_trainer_idle_s,
            step_actor_idle_s=step_actor_idle_s,
        )

    def add_usage(
        self,
        source: str,
        usage: TokenUsage,
        *,
        provider: str,
        model_name: str,
        rates: TokenRates | None = None,
        hold: Hold | None = None,
    ) -> float | None:
        """Price tokens and add them at `costs/<context>/<source>`, or at the nearest valid key if
        that conflicts with costs of the run; return US dollars, or None when unpriced. The `hold`
        of a budget on the call is settled.

        Unpriced calls are counted in `data/step_unpriced_calls`, with one warning per model. Calls
        of which a part has no price are counted in `data/step_partly_priced_calls`.
        """
        receipt = self.prices.bill(provider, model_name, usage, rates)
        covered = hold.settled(receipt.usd, self.budget) if hold else 0.0
        path = f"{self.context or 'train'}/{source}"
        self.ledger.add_receipt(self.context, path, receipt, covered)
        note_spent(receipt.usd)
        return receipt.usd

    def add_gpu_time(self, time: GpuTime, *, remedy: str | None = None) -> float | None:
        """Price device time and add it at `costs/gpu`; return US dollars, or None when unpriced.

        `remedy` ends the warning about a device without a price. Zero seconds add nothing.
        """
        receipt = self.prices.bill_gpu(time, remedy)
        if time.seconds:
            self.ledger.add_receipt(self.context, "gpu", receipt)
        return receipt.usd

    def add_unpriced(self) -> None:
        """Count a paid call whose cost is not known."""
        self.ledger.add("", UNPRICED, 1.0)

    def add_response_cost(
        self,
        source: str,
        response: Any,
        *,
        provider: str,
        model_name: str,
        service_tier: str | None = None,
    ) -> float | None:
        """Read the tokens in a provider's response and add their cost, as `add_usage` does.

        `service_tier` replaces that of the response: "batch" for a result of a batch.
        """
        usage = self.prices.usage(response, provider)
        if service_tier is not None:
            usage = attrs.evolve(usage, service_tier=service_tier)
        return self.add_usage(source, usage, provider=provider, model_name=model_name)

    def register_model_pricing(self, model: str, **per_million: float) -> None:
        """Set a model's prices in US dollars per million tokens, by the names of `TokenRates`."""
        self.prices.register(model, **per_million)

    def register_cost_extractor(
        self, provider: str, extract: Callable[[Any], float | None]
    ) -> None:
        """Set a function that reads US dollars, or None, from a provider's responses and chunks."""
        self.prices.register_extractor(provider, extract)

    def activate(self) -> Token[MetricsBuilder | None]:
        """Make `@track_api_cost` add to this builder from here on, also in threads started here."""
        return active_builder.set(self)

    @contextmanager
    def activate_context(self) -> Iterator[MetricsBuilder]:
        """Make this the active builder inside the block, and in threads that it starts."""
        token = self.activate()
        try:
            with in_scope(self):
                yield self
        finally:
            active_builder.reset(token)

    def _key(self, key: str) -> str:
        split = {"": "train", "eval": "val"}.get(self.context, self.context)
        return self.ledger.taxonomy.place(key, split)

    def _add_given(self, section: str, **values: float | None) -> None:
        for name, value in values.items():
            if value is not None:
                self.add_metric(section + name, value)


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
        reported = name in self._extractors or name in REPORTING
        return reported or self.rates(provider, model) is not None

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
        """Price device time and return its receipt, which has no leaf yet. Its rates have the
        `source` of the price and, from a dated table, `as_of`.

        The price given with the time wins over the plugins'. Without one, warn once, with the
        remedy.
        """
        rate, origin = time.usd_per_hour, {"source": "explicit"}
        if rate is None and (rate := self.plugins.gpu_rate(time.device)) is not None:
            origin = gpu_rate_origin(time.device, rate)
        if rate is None:
            remedy = remedy or "Give it with the time: usd_per_hour=..."
            self.warn_once(
                f"no price is known for device {time.device!r}: rows have no costs/gpu. {remedy}"
            )
            return gpu_receipt("", time, None, {})
        return gpu_receipt("", time, price_gpu(time, rate), {"usd_per_hour": rate} | origin)

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
