"""The hooks. A plugin's entry-point module implements some of them with `@art_core.hookimpl`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from art_core.backends import BackendSpec
    from art_core.hooks.commands import CommandSpec
    from art_core.metrics.receipt import TokenRates, TokenUsage
    from art_core.metrics.taxonomy import MetricSpec
    from art_core.rl.losses import LossSpec
    from art_core.sinks.protocol import SinkSpec

hookspec = pluggy.HookspecMarker("art_core")
hookimpl = pluggy.HookimplMarker("art_core")


@hookspec
def art_backends() -> Sequence[BackendSpec]:
    """Offer backends: places where weights are trained and served."""
    raise AssertionError("a hook's specification is never called")


@hookspec
def art_sinks() -> Sequence[SinkSpec]:
    """Offer sinks: places where metric rows go."""
    raise AssertionError("a hook's specification is never called")


@hookspec
def art_commands() -> Sequence[CommandSpec]:
    """Offer commands of `art`."""
    raise AssertionError("a hook's specification is never called")


@hookspec
def art_losses() -> Sequence[LossSpec]:
    """Offer losses: functions from log-probs and advantages to the loss of each token."""
    raise AssertionError("a hook's specification is never called")


@hookspec
def art_metrics() -> Sequence[MetricSpec]:
    """Add metric sections and keys, with unit, combine rule and direction."""
    raise AssertionError("a hook's specification is never called")


@hookspec
def art_rollup(
    leaves: Mapping[str, float], totals: Mapping[str, float], split: str
) -> Mapping[str, float] | None:
    """Derive new metrics of a row from its leaves and the run's totals; existing keys stay."""


@hookspec(firstresult=True)
def art_usage(response: Any, provider: str) -> TokenUsage | None:
    """Read the used tokens from a provider's response, or from a chunk of a streamed one."""


@hookspec(firstresult=True)
def art_token_rates(provider: str, model: str, usage: TokenUsage | None) -> TokenRates | None:
    """Price a model's tokens, in US dollars per million."""


@hookspec(firstresult=True)
def art_gpu_rate(device: str) -> float | None:
    """Price a device, in US dollars per device-hour."""
