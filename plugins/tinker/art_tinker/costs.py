"""What was used, by the token: each request and each step adds to the run's next row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from art_core import TokenRates, TokenUsage

if TYPE_CHECKING:
    from art_core import TrainableModel

PROVIDER = "tinker"
CACHED = ":cached-prefill"
"""After a base model's name: its prompt tokens that the service had in its cache."""


@attrs.frozen(kw_only=True, eq=False)
class Meter:
    """Adds the tokens of a model to `costs/<context>/tinker_*`.

    `cached_per_million` is what a million cached prompt tokens cost; without it the price list
    counts, and where that has no price they are unpriced and kept in a receipt, never free.
    """

    model: TrainableModel
    cached_per_million: float | None = None

    def sampled(self, context: str, *, prompt: int, cached: int, sampled: int) -> None:
        """Add one sampling request of a context, "train" or "eval"."""
        if prompt > cached:
            self._add(context, "tinker_prefill", TokenUsage(input_tokens=prompt - cached))
        if cached:
            self._cached(context, cached)
        if sampled:
            self._add(context, "tinker_sample", TokenUsage(output_tokens=sampled))

    def trained(self, tokens: int) -> None:
        """Add the tokens of a training step."""
        if tokens:
            self._add("train", "tinker_train", TokenUsage(train_tokens=tokens))

    def check_price(self) -> None:
        """Warn, once, if the model's tokens have no price: before any is used."""
        used = TokenUsage(input_tokens=1, output_tokens=1, train_tokens=1)
        self.model.metrics_builder().prices.price(PROVIDER, self.model.base_model, used)

    def _add(self, context: str, source: str, usage: TokenUsage) -> None:
        self.model.metrics_builder(context).add_usage(
            source, usage, provider=PROVIDER, model_name=self.model.base_model
        )

    def _cached(self, context: str, tokens: int) -> None:
        rates = None
        if self.cached_per_million is not None:
            rates = TokenRates(
                input_per_million=self.cached_per_million,
                output_per_million=0.0,
                source="cached_prefill_per_million of the backend",
            )
        self.model.metrics_builder(context).add_usage(
            "tinker_prefill",
            TokenUsage(input_tokens=tokens),
            provider=PROVIDER,
            model_name=self.model.base_model + CACHED,
            rates=rates,
        )
