"""`@track_api_cost`: a function that calls a paid API, and the cost leaf that each call adds to."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar, cast

import attrs

from art_core.costs.book import rates_of
from art_core.costs.payer import Payer, payer_of
from art_core.costs.rates import TokenRates
from art_core.costs.stream import TrackedStream, is_stream
from art_core.costs.usage import TokenUsage
from art_core.data.account import active_account
from art_core.errors import ConfigError
from art_core.metrics.builder import active_builder
from art_core.metrics.catalogue import builtin_taxonomy
from art_core.threads import carry_into_threads

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
    """Add what each call of the function costs to `costs/<context>/<source>`.

    The function, sync or async, returns a provider's response with its token usage, something from
    which `response_getter` gets it, or a stream of chunks; it may be a generator of chunks, too.
    The context is that of the active metrics builder. Without one, the cost of a rollout goes to
    the run of the model that logs its group or trains on it, and any other to the only open model.
    While there is none, or several, such a cost is kept, with a warning.

    Prices are those given here (`prompt_per_million=...`), else registered ones, else a plugin's.
    A missing price raises PricingError before the call is made; after the call nothing raises: what
    cannot be priced is counted in `data/step_unpriced_calls` and said once. Raises MetricError for
    a source that is no path of a cost.
    """
    for name, value in (("source", source), ("provider", provider), ("model_name", model_name)):
        if not isinstance(value, str) or not value:
            raise ConfigError(f"track_api_cost needs {name}, got {value!r}")
    builtin_taxonomy().place(f"costs/train/{source}", "train")
    explicit = rates_of(per_million, source="explicit") if per_million else None
    carry_into_threads(active_builder, active_account, _counted)
    meter = _Meter(source, provider, model_name, response_getter, explicit)
    return cast("Callable[[Callable[P, R]], Callable[P, R]]", meter.wrap)


@attrs.frozen
class _Meter:
    source: str
    provider: str
    model: str
    getter: Callable[[Any], Any] | None
    explicit: TokenRates | None

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function of any of the four kinds, also a method."""
        if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
            return self._wrap_generator(function)
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def tracked_async(*args: Any, **kwargs: Any) -> Any:
                return await self._awaited(self._before(), function(*args, **kwargs))

            return tracked_async

        @functools.wraps(function)
        def tracked(*args: Any, **kwargs: Any) -> Any:
            payer = self._before()
            with self._calls_inside(payer) as counted:
                result = function(*args, **kwargs)
            if isinstance(result, Coroutine):
                # Such as a method of AsyncOpenAI, which looks at its arguments before it is async.
                return self._awaited(payer, result)
            return self._after(payer, result, counted)

        return tracked

    def _wrap_generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.isgeneratorfunction(function):

            @functools.wraps(function)
            def tracked(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
                return (yield from self._after(self._before(), function(*args, **kwargs)))

            return tracked

        @functools.wraps(function)
        async def tracked_async(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            async with aclosing(self._after(self._before(), function(*args, **kwargs))) as stream:
                async for chunk in stream:
                    yield chunk

        return tracked_async

    async def _awaited(self, payer: Payer, call: Coroutine[Any, Any, Any]) -> Any:
        with self._calls_inside(payer) as counted:
            result = await call
        return self._after(payer, result, counted)

    def _before(self) -> Payer:
        payer = payer_of(self.source, self.provider, self.model)
        if self.explicit is None:
            payer.prices.require(self.provider, self.model)
        return payer

    def _after(self, payer: Payer, result: Any, counted: Sequence[Any] = ()) -> Any:
        if isinstance(result, TrackedStream):
            return result
        if self.getter is None and is_stream(result):
            own = hasattr(result, "__next__") or hasattr(result, "__anext__")
            stream = result if own else aiter(result)
            return TrackedStream(
                stream,
                lambda usage: self._add(payer, lambda: usage),
                tokens=lambda part: payer.prices.tokens(part, self.provider),
                cost=lambda part: payer.prices.extracted(part, self.provider),
            )
        response_of = self.getter or _itself
        self._add(payer, lambda: self._usage(payer, response_of(result), counted))
        return result

    @contextmanager
    def _calls_inside(self, payer: Payer) -> Iterator[list[Any]]:
        """Collect the responses that tracked calls inside the block count, in tasks and threads
        that it begins, too: a function that hands on the response of another is not paid twice.

        Of a call that was answered and then failed, as OpenAI's `parse` does at a cut answer, the
        error tells the `completion` that was paid.
        """
        counted: list[Any] = []
        token = _counted.set(counted)
        paid = None
        try:
            yield counted
        except Exception as error:
            paid = getattr(error, "completion", None)
            raise
        finally:
            with suppress(ValueError):  # of a call that is dropped unfinished, in another context
                _counted.reset(token)
            if paid is not None:
                self._add(payer, lambda: self._usage(payer, paid, counted))

    def _usage(self, payer: Payer, response: Any, counted: Sequence[Any]) -> TokenUsage | None:
        """Return what a response used; None for one that a tracked call inside has counted."""
        outer = _counted.get()
        if outer is not None:
            outer.append(response)
        if any(response is one for one in counted):
            return None
        return payer.prices.usage(response, self.provider)

    def _add(self, payer: Payer, usage: Callable[[], TokenUsage | None]) -> None:
        names = {"provider": self.provider, "model_name": self.model}
        try:
            used = usage()
            if used is not None:
                payer.add_usage(self.source, used, **names, rates=self.explicit)
        except Exception:
            log.exception(
                "the cost of a call of %r could not be read; the call's result is kept", self.source
            )
            payer.add_unpriced()


_counted: ContextVar[list[Any] | None] = ContextVar("art_counted_responses", default=None)


def _itself(result: Any) -> Any:
    return result
