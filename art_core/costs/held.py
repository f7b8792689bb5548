"""Paid calls that a budget has reserved before they are made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from art_core.budgets.hold import Hold, active_limits, hold
from art_core.costs.builder import MetricsBuilder, PriceBook
from art_core.costs.pending import PendingPayer
from art_core.metrics.receipt import TokenRates, TokenUsage


def is_limited(payer: MetricsBuilder | PendingPayer) -> bool:
    """Return whether a budget limits the calls of a payer."""
    return bool(active_limits.get()) or payer.budget is not None


def reserved(
    payer: MetricsBuilder | PendingPayer,
    source: str,
    provider: str,
    model_name: str,
    request: Mapping[str, Any],
    rates: TokenRates | None = None,
) -> Hold | None:
    """Reserve a call in the budgets that limit it, by its request; None if there are none.

    BudgetError before the call if it would exceed one of them.
    """
    if not is_limited(payer):
        return None
    rates = rates or payer.prices.rates(provider, model_name)
    return hold(payer.budget, f"{source} {model_name}", rates, request)


@attrs.frozen(eq=False)
class HeldPayer:
    """A payer whose budget has reserved the call."""

    payer: MetricsBuilder | PendingPayer
    hold: Hold

    @property
    def prices(self) -> PriceBook:
        """The payer's price book."""
        return self.payer.prices

    def add_usage(self, source: str, usage: TokenUsage, **terms: Any) -> None:
        """Add the call's cost, and settle what was reserved."""
        self.payer.add_usage(source, usage, **terms, hold=self.hold)

    def add_unpriced(self) -> None:
        """Count a call of unknown cost; its reservation is taken as spent."""
        self.hold.settle(None)
        self.payer.add_unpriced()
