"""Costs by the token: each request and each training step adds its usage to the next row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from art_core import TokenRates, TokenUsage

if TYPE_CHECKING:
    from art_core import TrainableModel

PROVIDER = "tinker"
CACHED = ":cached-prefill"
"""Suffix of a base model's name in prices: prompt tokens that were in the service's cache."""


@attrs.frozen(kw_only=True, eq=False)
class TinkerMeter:
    """Adds the tokens of a model to `costs/<context>/tinker_*`.

    `cached_per_million` is the price of a million cached prompt tokens, by default that of the
    price list. Tokens without a price are recorded as unpriced, never as free.
    """

    model: TrainableModel
    cached_per_million: float | None = None

    def sampled(self, context: str, *, prompt: int, cached: int, sampled: int) -> None:
        """Add the tokens of one sampling request in a context, "train" or "eval"."""
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
        """Warn once if the model's tokens have no price, before the first token is used."""
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
