"""The core's own implementations of the hooks, registered first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from art_core.hooks.hookspecs import hookimpl
from art_core.sinks.protocol import SinkSpec

if TYPE_CHECKING:
    from art_core.metrics.receipt import TokenRates, TokenUsage


@hookimpl
def art_sinks() -> Sequence[SinkSpec]:
    """The console sink."""
    from art_core.sinks.console import console_sink

    return [console_sink()]


@hookimpl
def art_token_rates(provider: str, model: str, usage: TokenUsage | None) -> TokenRates | None:
    """The default price books: of hosted training, and of API models."""
    from art_core.prices.tokens import book_rates, training_rates

    return training_rates(provider, model) or book_rates(provider, model, usage)


@hookimpl
def art_gpu_rate(device: str) -> float | None:
    """Default prices of devices, from `gpu_prices.json`; None for a device that is not in it."""
    from art_core.prices.table import gpu_rate

    return gpu_rate(device)
