"""The metrics builder: adds costs, times and counts to the ledger, in the context of a split."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import Any
from weakref import WeakSet

import attrs

from art_core.base.errors import ConfigError, MetricError
from art_core.base.numbers import text_of
from art_core.costs.book import PriceBook
from art_core.costs.ledger import UNPRICED, Ledger
from art_core.data.account import in_scope
from art_core.metrics.receipt import GpuTime, TokenRates, TokenUsage
from art_core.metrics.taxonomy import number

active_builder: ContextVar[MetricsBuilder | None] = ContextVar("art_active_builder", default=None)
default_builders: WeakSet[MetricsBuilder] = WeakSet()
"""Builders of the open models. A cost without an active builder goes to the only one."""
_defaults = threading.Lock()


def offer_default(builder: MetricsBuilder) -> None:
    """Add a builder to the default builders."""
    with _defaults:
        default_builders.add(builder)


def withdraw_default(builder: MetricsBuilder) -> None:
    """Remove a builder from the default builders, if it is one of them."""
    with _defaults:
        default_builders.discard(builder)


def open_builders() -> list[MetricsBuilder]:
    """Return the default builders of the open models."""
    with _defaults:
        return list(default_builders)


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
        """Add counts of the step, and the ids of its scenarios for
        `data/cum/num_unique_scenarios`.
        """
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
    ) -> float | None:
        """Price tokens and add them at `costs/<context>/<source>`, or at the nearest valid key if
        that conflicts with costs of the run; return US dollars, or None when unpriced.

        Unpriced calls are counted in `data/step_unpriced_calls`, with one warning per model. Calls
        of which a part has no price are counted in `data/step_partly_priced_calls`.
        """
        receipt = self.prices.bill(provider, model_name, usage, rates)
        self.ledger.add_receipt(self.context, f"{self.context or 'train'}/{source}", receipt)
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
        """Set a model's prices, in US dollars per million tokens; see `TokenRates` for the
        names.
        """
        self.prices.register(model, **per_million)

    def register_cost_extractor(
        self, provider: str, extract: Callable[[Any], float | None]
    ) -> None:
        """Set a function that reads US dollars from a provider's responses, or the chunks of a
        streamed one; None where they have none.
        """
        self.prices.register_extractor(provider, extract)

    def activate(self) -> Token[MetricsBuilder | None]:
        """Make `@track_api_cost` add to this builder, from here on in this task or thread, and in
        threads that it starts.
        """
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
