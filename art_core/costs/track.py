"""`@track_api_cost`: a function that calls a paid API, who pays, and the cost leaf of each call.

A call inside a tracked call is paid once.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import inspect
import logging
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterator,
    Mapping,
)
from contextlib import aclosing, contextmanager, suppress
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar, cast

import attrs

from art_core.base.errors import ConfigError
from art_core.base.spending import active_spending
from art_core.base.threads import carry_into_threads
from art_core.budgets.hold import Hold, active_limits, active_source
from art_core.costs.builder import MetricsBuilder, active_builder
from art_core.costs.held import HeldPayer, reserved
from art_core.costs.pending import PendingPayer, book_for, only_scope, open_builders
from art_core.costs.stream import TrackedStream
from art_core.data.account import UNOWNED, active_account, before_gatherings
from art_core.metrics.receipt import COUNTS, TokenRates, TokenUsage, rates_of
from art_core.metrics.taxonomy import builtin_taxonomy

log = logging.getLogger("art_core")
P = ParamSpec("P")
R = TypeVar("R")


@attrs.frozen(eq=False)
class MeteredCall:
    """A call that a model's own client made; `book` adds its cost to a run."""

    usage: TokenUsage
    book: Callable[[], None]
    hold: Hold | None = None

    def drop(self) -> None:
        """Leave the call to the tracked call around it, which pays."""
        if self.hold is not None:
            self.hold.settle(0.0)


@attrs.define(eq=False)
class CallsInside:
    """Calls that were paid inside one tracked call.

    `responses` were counted by tracked calls inside it. `metered` calls of a model's own client
    wait: the tracked call pays for the one that it returns. If it `streams`, it pays for all that
    is read from the stream.
    """

    responses: list[Any] = attrs.field(factory=list)
    metered: list[MeteredCall] = attrs.field(factory=list)
    streams: bool = False
    ended: bool = False

    @contextmanager
    def entered(self) -> Iterator[CallsInside]:
        """Collect calls inside the block, and in tasks and threads that it starts."""
        token = calls_inside.set(self)
        try:
            yield self
        finally:
            with suppress(ValueError):  # of a call that is dropped unfinished, in another context
                calls_inside.reset(token)

    def meter(self, call: MeteredCall) -> None:
        """Add a call of a model's own client, or book it if the tracked call has ended."""
        if not self.ended:
            self.metered.append(call)
        elif not self.streams:
            call.book()
        else:
            call.drop()

    def pays_for(self, usage: TokenUsage) -> TokenUsage:
        """Return the usage of the tracked call's response; a metered call with it is dropped."""
        same = (call for call in self.metered if _counts(call.usage) == _counts(usage))
        found = next(same, None)
        if found is not None:
            self.metered.remove(found)
            found.drop()
        return usage

    def end(self) -> None:
        """Book the metered calls that are left: the tracked call did not return them."""
        self.ended = True
        while self.metered:
            self.metered.pop().book()


calls_inside: ContextVar[CallsInside | None] = ContextVar("art_calls_inside", default=None)


def _counts(usage: TokenUsage) -> list[int]:
    return [getattr(usage, name) for name in COUNTS]


Payer = MetricsBuilder | PendingPayer | HeldPayer


def carry_payers() -> None:
    """Carry the payer of a context into threads that are started in it."""
    carry_into_threads(active_builder, active_account, active_spending, calls_inside)
    carry_into_threads(active_limits, active_source)


def payer_of(
    source: str, provider: str, model_name: str, own: MetricsBuilder | None = None
) -> MetricsBuilder | PendingPayer:
    """Return the payer of a call that is made now: the first of these that there is.

    1. The active builder; one without a context comes after a group, which has that of its split.
    2. The group that is gathered.
    3. In a thread that began before: the only builder or gathering that is active anywhere.
    4. `own`, the builder of the model that is called.
    5. The next model that logs groups. There is one warning per source unless one model is open.
    """
    builder, account = active_builder.get(), active_account.get()
    if builder is None and account is None:
        builder, account = only_scope(source)
    if builder is not None and (builder.context or account is None):
        return builder
    if account is None and own is not None:
        return own
    return PendingPayer(source, account or UNOWNED, book_for(provider, model_name))


def track_api_cost(
    *,
    source: str,
    provider: str,
    model_name: str,
    response_getter: Callable[[Any], Any] | None = None,
    **per_million: float,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Add the cost of each call of the function to `costs/<context>/<source>`.

    The function is sync or async. It returns a provider's response with its token usage, a value
    from which `response_getter` gets the response, a stream of chunks, or a task or future of one
    of these. A generator of chunks works, too.
    The context is that of the active metrics builder. Without one, the cost of a rollout goes to
    the run of the model that logs its group or trains on it, and any other cost to the only open
    model. If no model is open, or several are, such a cost is kept, with a warning.

    Prices are those given here (`prompt_per_million=...`), else registered ones, else a plugin's.
    A missing price raises PricingError before the call is made. After the call nothing raises:
    calls without a price are counted in `data/step_unpriced_calls`, with a warning. Raises
    MetricError for an invalid source.
    """
    for name, value in (("source", source), ("provider", provider), ("model_name", model_name)):
        if not isinstance(value, str) or not value:
            raise ConfigError(f"track_api_cost needs {name}, got {value!r}")
    builtin_taxonomy().place(f"costs/train/{source}", "train")
    explicit = rates_of(per_million, source="explicit") if per_million else None
    carry_payers()
    tracked = _TrackedFunction(source, provider, model_name, response_getter, explicit)
    if explicit is None:
        _unchecked.append(tracked)
    return cast("Callable[[Callable[P, R]], Callable[P, R]]", tracked.wrap)


@attrs.frozen
class _TrackedFunction:
    source: str
    provider: str
    model: str
    getter: Callable[[Any], Any] | None
    explicit: TokenRates | None

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function, coroutine function or generator, also a method."""
        if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
            return self._wrap_generator(function)
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def tracked_async(*args: Any, **kwargs: Any) -> Any:
                payer = self._before(args, kwargs)
                return await self._awaited(payer, function(*args, **kwargs))

            return tracked_async

        @functools.wraps(function)
        def tracked(*args: Any, **kwargs: Any) -> Any:
            payer, inside = self._before(args, kwargs), CallsInside()
            with self._calling(payer, inside):
                result = function(*args, **kwargs)
            if isinstance(result, Coroutine):
                # Such as a method of AsyncOpenAI, which looks at its arguments before it is async.
                return self._awaited(payer, result, inside)
            if isinstance(result, asyncio.Future):
                return result.get_loop().create_task(self._awaited(payer, result, inside))
            if isinstance(result, concurrent.futures.Future):
                result.add_done_callback(self._counts_future(payer, inside))
                return result
            return self._after(payer, result, inside)

        return tracked

    def _wrap_generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.isgeneratorfunction(function):

            @functools.wraps(function)
            def tracked(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
                payer = self._before(args, kwargs)
                return (yield from self._after(payer, function(*args, **kwargs)))

            return tracked

        @functools.wraps(function)
        async def tracked_async(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            payer = self._before(args, kwargs)
            async with aclosing(self._after(payer, function(*args, **kwargs))) as stream:
                async for chunk in stream:
                    yield chunk

        return tracked_async

    async def _awaited(
        self, payer: Payer, call: Awaitable[Any], inside: CallsInside | None = None
    ) -> Any:
        inside = inside or CallsInside()
        with self._calling(payer, inside):
            result = await call
        return self._after(payer, result, inside)

    def _counts_future(
        self, payer: Payer, inside: CallsInside
    ) -> Callable[[concurrent.futures.Future[Any]], None]:
        around = calls_inside.get() or CallsInside()

        def done(future: concurrent.futures.Future[Any]) -> None:
            with suppress(Exception, concurrent.futures.CancelledError), around.entered():
                with self._calling(payer, inside):
                    result = future.result()
                self._after(payer, result, inside)

        return done

    def _before(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Payer:
        payer = payer_of(self.source, self.provider, self.model)
        names, budget = (self.provider, self.model), payer.budget
        states_bound = budget is not None and budget.terms.unknown_price_usd is not None
        if self.explicit is None and not states_bound:
            payer.prices.require(*names)
        if budget is None and not active_limits.get():
            return payer
        held = reserved(payer, self.source, *names, {**kwargs, "": args}, self.explicit)
        assert held is not None
        return HeldPayer(payer, held)

    def _after(self, payer: Payer, result: Any, inside: CallsInside | None = None) -> Any:
        inside = inside or CallsInside()
        if isinstance(result, TrackedStream):
            inside.end()
            return result
        if self.getter is None and is_stream(result):
            return self._stream(payer, result, inside)
        response_of = self.getter or _itself
        self._add(payer, lambda: self._usage(payer, response_of(result), inside))
        inside.end()
        return result

    def _stream(self, payer: Payer, result: Any, inside: CallsInside) -> TrackedStream:
        def finished(usage: TokenUsage) -> None:
            self._add(payer, lambda: inside.pays_for(usage))
            inside.end()

        inside.streams = True
        own = hasattr(result, "__next__") or hasattr(result, "__anext__")
        return TrackedStream(
            result if own else aiter(result),
            finished,
            tokens=lambda part: payer.prices.tokens(part, self.provider),
            cost=lambda part: payer.prices.extracted(part, self.provider),
            entered=inside.entered,
        )

    @contextmanager
    def _calling(self, payer: Payer, inside: CallsInside) -> Iterator[None]:
        """Collect paid calls inside the block.

        A call can fail after its answer, as OpenAI's `parse` does at a cut answer. Its error has
        the `completion`, which was paid.
        """
        try:
            with inside.entered():
                yield
        except BaseException as error:
            paid = getattr(error, "completion", None)
            if paid is not None:
                self._add(payer, lambda: self._usage(payer, paid, inside))
            elif isinstance(payer, HeldPayer):
                payer.hold.fail(error)
            inside.end()
            raise

    def _usage(self, payer: Payer, response: Any, inside: CallsInside) -> TokenUsage | None:
        """Return a response's usage; None if a tracked call inside has counted it."""
        around = calls_inside.get()
        if around is not None:
            around.responses.append(response)
        if any(response is one for one in inside.responses):
            return None
        return inside.pays_for(payer.prices.usage(response, self.provider))

    def _add(self, payer: Payer, usage: Callable[[], TokenUsage | None]) -> None:
        names: dict[str, Any] = {"provider": self.provider, "model_name": self.model}
        try:
            used = usage()
            if used is not None:
                payer.add_usage(self.source, used, **names, rates=self.explicit)
        except ConfigError as error:
            payer.prices.warn_once(
                f"the cost of calls of {self.source!r} could not be read: {error}. "
                "They are counted as unpriced; the call's result is kept"
            )
            payer.add_unpriced()
        except Exception:
            log.exception(
                "the cost of a call of %r could not be read; the call's result is kept", self.source
            )
            payer.add_unpriced()
        finally:
            if isinstance(payer, HeldPayer):
                payer.hold.settle(0.0)  # a tracked call inside it has paid


_unchecked: list[_TrackedFunction] = []


def _check_prices() -> None:
    """Warn of missing prices before rollouts sample anything: calls without a price raise."""
    while _unchecked:
        tracked = _unchecked.pop()
        builder = active_builder.get()
        prices = builder.prices if builder else book_for(tracked.provider, tracked.model)
        if not prices.can_price(tracked.provider, tracked.model):
            prices.warn_once(
                f"no price is known for model {tracked.model!r} of provider {tracked.provider!r}: "
                f"calls of {tracked.source!r} will raise PricingError before they are made. "
                "Register one: model.metrics_builder().register_model_pricing"
                f"({tracked.model!r}, prompt_per_million=..., completion_per_million=...)."
            )


def _reserve_step() -> None:
    """Reserve the step of the only open model that trains with a budget, before its rollouts."""
    budgets = {id(b): b for b in (each.budget for each in open_builders()) if b and b.trains}
    if len(budgets) == 1:
        next(iter(budgets.values())).begin("train")


before_gatherings(_check_prices)
before_gatherings(_reserve_step)


def _itself(result: Any) -> Any:
    return result


def is_stream(result: Any) -> bool:
    """Return whether a result is an iterator of chunks, not a response."""
    return hasattr(result, "__aiter__") or hasattr(result, "__next__")
