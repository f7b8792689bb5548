"""`@track_api_cost`: a function that calls a paid API, and the cost leaf that each call adds to."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import attrs

from art_core.costs.book import rates_of
from art_core.costs.rates import TokenRates
from art_core.errors import ConfigError
from art_core.metrics.builder import MetricsBuilder, active_builder

log = logging.getLogger("art_core")
P = ParamSpec("P")
R = TypeVar("R")


def track_api_cost(
    *,
    source: str,
    provider: str,
    model_name: str,
    response_getter: Callable[[Any], Any] | None = None,
    **per_million: float,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Add what each call of the function costs to `costs/<context>/<source>` of the active metrics
    builder.

    The function, sync or async, returns a provider's response with its token usage, or something
    from which `response_getter` gets it. Prices are those given here (`prompt_per_million=...`),
    else registered ones, else a plugin's. A missing price raises PricingError before the call is
    made; after the call nothing raises: what cannot be priced is counted and said once. With no
    active builder a call is made and said.
    """
    for name, value in (("source", source), ("provider", provider), ("model_name", model_name)):
        if not isinstance(value, str) or not value:
            raise ConfigError(f"track_api_cost needs {name}, got {value!r}")
    call = _TrackedCall(
        source=source,
        provider=provider,
        model_name=model_name,
        response_getter=response_getter,
        explicit=rates_of(per_million, source="explicit") if per_million else None,
    )

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def tracked_async(*args: P.args, **kwargs: P.kwargs) -> Any:
                builder = call.before()
                result = await function(*args, **kwargs)
                call.after(builder, result)
                return result

            return cast("Callable[P, R]", tracked_async)

        @functools.wraps(function)
        def tracked(*args: P.args, **kwargs: P.kwargs) -> R:
            builder = call.before()
            result = function(*args, **kwargs)
            call.after(builder, result)
            return result

        return tracked

    return decorate


@attrs.frozen(kw_only=True)
class _TrackedCall:
    source: str
    provider: str
    model_name: str
    response_getter: Callable[[Any], Any] | None
    explicit: TokenRates | None

    def before(self) -> MetricsBuilder | None:
        """Return the active builder; PricingError when it could not price the call."""
        builder = active_builder.get()
        if builder is None:
            _say_no_builder(self.source)
        elif self.explicit is None:
            builder.prices.require(self.provider, self.model_name)
        return builder

    def after(self, builder: MetricsBuilder | None, result: Any) -> None:
        """Add the call's cost to the builder; never raises."""
        if builder is None:
            return
        try:
            response = result if self.response_getter is None else self.response_getter(result)
            builder.add_usage(
                self.source,
                builder.prices.usage(response, self.provider),
                provider=self.provider,
                model_name=self.model_name,
                rates=self.explicit,
            )
        except Exception:
            log.exception(
                "the cost of a call of %r could not be read; the call's result is kept", self.source
            )
            builder.add_unpriced()


@functools.cache
def _say_no_builder(source: str) -> None:
    log.warning(
        "calls tracked as %r run without an active metrics builder; their cost is not recorded. "
        "Wrap them in `with model.metrics_builder('train').activate_context():`.",
        source,
    )
