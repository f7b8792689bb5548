"""Fifth stop: the step's buffer. Costs, times and counts that no trajectory carries, until a row
takes them.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import Any
from weakref import WeakSet

import attrs

from art_core.costs.book import PriceBook
from art_core.costs.rates import TokenRates
from art_core.costs.usage import TokenUsage
from art_core.errors import ConfigError, MetricError
from art_core.metrics.taxonomy import Taxonomy, number

Samples = dict[str, list[float]]
_MANY = 4096


@attrs.frozen
class Taken:
    """What a row took from the ledger; `restore` puts it back."""

    samples: dict[str, Samples]
    scenario_ids: frozenset[str]


NOTHING = Taken({}, frozenset())


@attrs.define
class Ledger:
    """Samples not yet in a row, by context and key. Exact and safe under threads: sums are
    `math.fsum`.
    """

    taxonomy: Taxonomy
    _samples: dict[str, Samples] = attrs.field(factory=dict)
    _scenario_ids: set[str] = attrs.field(factory=set)
    _lock: threading.RLock = attrs.field(factory=threading.RLock, repr=False)

    def add(self, context: str, key: str, value: float) -> None:
        """Add one sample."""
        with self._lock:
            try:
                values = self._samples[context][key]
            except KeyError:
                values = self._samples.setdefault(context, {}).setdefault(key, [])
            values.append(value)
            if len(values) > _MANY and self.taxonomy.spec(key).combine == "sum":
                values[:] = _folded(values)

    def add_scenarios(self, ids: Iterable[str]) -> None:
        """Remember scenario ids for the next train row."""
        with self._lock:
            self._scenario_ids.update(ids)

    def take(self, split: str) -> Taken:
        """Remove and return what belongs in the next row of a split.

        That is the split's own context, samples without context, and the costs of every context:
        money does not wait for a row of its own split.
        """
        if not self._samples and not self._scenario_ids:
            return NOTHING
        own = {"", split, "eval"} if split in ("val", "test") else {"", split}
        with self._lock:
            taken: dict[str, Samples] = {}
            for context in list(self._samples):
                buffer = self._samples[context]
                keys = [k for k in buffer if context in own or k.startswith("costs/")]
                taken[context] = {k: buffer.pop(k) for k in keys}
                if not buffer:
                    del self._samples[context]
            ids = frozenset(self._scenario_ids) if split == "train" else frozenset[str]()
            self._scenario_ids -= ids
        return Taken(taken, ids)

    def restore(self, taken: Taken) -> None:
        """Put back what a row that was not written had taken."""
        with self._lock:
            for context, samples in taken.samples.items():
                buffer = self._samples.setdefault(context, {})
                for key, values in samples.items():
                    buffer[key] = values + buffer.get(key, [])
            self._scenario_ids |= taken.scenario_ids

    def empty(self) -> bool:
        """Tell whether nothing waits for a row."""
        with self._lock:
            return not self._samples

    def combined(self, taken: Taken) -> tuple[dict[str, float], dict[str, float]]:
        """Combine the samples of each key as its spec says, and apart from them the samples that
        are not finite.

        MetricError for unequal samples of a `same` metric.
        """
        merged: Samples = {}
        for samples in taken.samples.values():
            for key, values in samples.items():
                merged.setdefault(key, []).extend(values)
        combined: dict[str, float] = {}
        odd: dict[str, float] = {}
        for key, values in merged.items():
            finite = [v for v in values if math.isfinite(v)]
            if finite:
                combined[key] = _combine(key, finite, self.taxonomy)
            if len(finite) < len(values):
                odd[key] = next(v for v in values if not math.isfinite(v))
        return combined, odd


def _folded(values: list[float]) -> list[float]:
    odd = [v for v in values if not math.isfinite(v)]
    return [math.fsum(v for v in values if math.isfinite(v)), *odd[:1]]


def _combine(key: str, values: list[float], taxonomy: Taxonomy) -> float:
    rule = taxonomy.spec(key).combine
    if rule == "sum":
        return math.fsum(values)
    if rule == "mean":
        return math.fsum(values) / len(values)
    if rule == "same" and any(v != values[0] for v in values):
        raise MetricError(
            f"metric {key!r} has unequal samples in one step: {sorted(set(values))[:4]}"
        )
    return values[-1]


active_builder: ContextVar[MetricsBuilder | None] = ContextVar("art_active_builder", default=None)
default_builders: WeakSet[MetricsBuilder] = WeakSet()
"""Of the open models: where a cost goes when no builder is active, in a thread pool say."""


def current_builder() -> MetricsBuilder | None:
    """Return the active builder, else the only open model's; None when there is none or several."""
    active = active_builder.get()
    if active is not None:
        return active
    defaults = list(default_builders)
    return defaults[0] if len(defaults) == 1 else None


@attrs.frozen(eq=False)
class MetricsBuilder:
    """Adds to the next row of a model: `model.metrics_builder()`, or with a context, "train" or
    "eval".

    Metrics whose spec says `sum` (`costs/`, `time/step_`, `data/step_`, idle times) add up within a
    step; others are averaged, or as their spec says.
    """

    ledger: Ledger = attrs.field(repr=False)
    prices: PriceBook = attrs.field(repr=False)
    context: str = ""

    @contextmanager
    def measure(self, key: str) -> Iterator[None]:
        """Add the seconds spent in the block to a key, `time/step_actor_s` say."""
        self._key(key)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add_metric(key, time.perf_counter() - start)

    def add_metric(self, key: str, value: float) -> None:
        """Add a sample to a key; a bare key goes under the context's split."""
        self.ledger.add(self.context, self._key(key), number(key, value))

    def add_cost(self, path: str, usd: float) -> None:
        """Add US dollars to a cost leaf: `train/llm_judge` means `costs/train/llm_judge`."""
        value = number(path, usd)
        if value < 0:
            raise MetricError(f"a cost can't be negative: {path!r} {usd!r}")
        self.ledger.add(self.context, _cost_key(self.ledger.taxonomy, path), value)

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
        self.ledger.add_scenarios(str(i) for i in scenario_ids)

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
        """Price tokens and add them at `costs/<context>/<source>`; return US dollars, or None when
        unpriced.

        Unpriced calls are counted in `data/step_unpriced_calls` and said once a model.
        """
        usd = self.prices.price(provider, model_name, usage, rates)
        if usd is None:
            self.add_unpriced()
            return None
        self.add_cost(f"{self.context or 'train'}/{source}", usd)
        return usd

    def add_unpriced(self) -> None:
        """Count a paid call whose cost is not known."""
        self.ledger.add("", "data/step_unpriced_calls", 1.0)

    def add_response_cost(
        self, source: str, response: Any, *, provider: str, model_name: str
    ) -> float | None:
        """Read the tokens out of a provider's response and add what they cost; as `add_usage`."""
        usage = self.prices.usage(response, provider)
        return self.add_usage(source, usage, provider=provider, model_name=model_name)

    def register_model_pricing(self, model: str, **per_million: float) -> None:
        """Set a model's prices, in US dollars per million tokens; see `TokenRates` for the
        names.
        """
        self.prices.register(model, **per_million)

    def register_cost_extractor(
        self, provider: str, extract: Callable[[Any], float | None]
    ) -> None:
        """Set a function that reads US dollars out of a provider's responses."""
        self.prices.register_extractor(provider, extract)

    def activate(self) -> Token[MetricsBuilder | None]:
        """Make this the builder that `@track_api_cost` adds to, from here on in this task or
        thread.
        """
        return active_builder.set(self)

    @contextmanager
    def activate_context(self) -> Iterator[MetricsBuilder]:
        """Make this the active builder inside the block."""
        token = self.activate()
        try:
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


def _cost_key(taxonomy: Taxonomy, path: str) -> str:
    return taxonomy.place(path if path.startswith("costs/") else f"costs/{path}", "train")
