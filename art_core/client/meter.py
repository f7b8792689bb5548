"""The meter of a model's own client: it reserves each request in a budget, and reads its cost."""

from __future__ import annotations

import importlib
import logging
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

import attrs
import orjson

from art_core.budgets.hold import Hold
from art_core.costs.builder import MetricsBuilder
from art_core.costs.held import reserved
from art_core.costs.pending import PendingPayer
from art_core.costs.stream import TrackedStream
from art_core.costs.track import MeteredCall, calls_inside, carry_payers, payer_of
from art_core.metrics.receipt import TokenUsage
from art_core.prices.book import provider_at

log = logging.getLogger("art_core")

_held: ContextVar[Hold | None] = ContextVar("art_held", default=None)
SOURCE = "model"
"""Leaf of a model's own tokens: `costs/<context>/model`."""
READABLE = "gzip, deflate"
"""Encodings of a stream that can be read while it passes."""
_ANSWERS = ("/completions", "/responses")


@attrs.frozen(eq=False)
class ModelMeter:
    """Adds the cost of each answer to the run that pays; `own` is the model's builder."""

    base_url: str
    model_name: str
    own: MetricsBuilder

    def __attrs_post_init__(self) -> None:
        carry_payers()

    @contextmanager
    def reserving(self, *parts: Any) -> Iterator[None]:
        """Reserve the call that the block makes, if a budget limits it, by parts of its body."""
        request = {k: v for part in parts if isinstance(part, Mapping) for k, v in part.items()}
        provider, model, payer = self._payer(request.get("model"))
        rates = self.own.prices.rates(provider, model)
        held = reserved(payer, SOURCE, provider, model, request, rates)
        token = _held.set(held)
        try:
            yield
        except BaseException as error:
            if held is not None:
                held.fail(error)
            raise
        finally:
            _held.reset(token)

    def _payer(self, model: Any) -> tuple[str, str, MetricsBuilder | PendingPayer]:
        model = model or self.model_name
        provider = provider_at(self.base_url) or urlsplit(self.base_url).netloc
        return provider, model, payer_of(SOURCE, provider, model, self.own)

    async def see(self, response: Any) -> None:
        """Read a response's usage, now or when its stream ends: an event hook of the HTTP client.

        Errors are logged only, so the response reaches the caller.
        """
        try:
            if response.request.method == "POST" and response.is_success:
                await self._see(response)
        except Exception:
            log.exception("the usage of an answer of %s could not be read", self.base_url)

    async def _see(self, response: Any) -> None:
        kind = response.headers.get("content-type", "")
        if kind.startswith("text/event-stream"):
            self._see_stream(response)
        elif kind.startswith("application/json"):
            body = orjson.loads(await response.aread())
            answers = response.request.url.path.endswith(_ANSWERS)
            if isinstance(body, dict) and (answers or body.get("usage")):
                call = self._call(response.request)
                call.add(call.payer.prices.usage(body, call.provider))

    def _see_stream(self, response: Any) -> None:
        call = self._call(response.request)
        prices = call.payer.prices
        reader = TrackedStream(
            None,
            call.add,
            tokens=lambda part: prices.tokens(part, call.provider),
            cost=lambda part: prices.extracted(part, call.provider),
        )
        encoding = response.headers.get("content-encoding", "identity")
        response.stream = _observed(response, _Events(reader, _decoder(encoding)))

    def _call(self, request: Any) -> _Call:
        provider, model, payer = self._payer(orjson.loads(request.content).get("model"))
        return _Call(self.own, payer, provider, model, _held.get())


@attrs.define(eq=False)
class _Call:
    """One request, its payer and the tracked call around it."""

    own: MetricsBuilder
    payer: MetricsBuilder | PendingPayer
    provider: str
    model: str
    hold: Hold | None = None
    inside: Any = attrs.field(factory=calls_inside.get)

    def add(self, usage: TokenUsage) -> None:
        """Add the cost, now or by the tracked call around this one."""
        if self.inside is None:
            self._book(usage)
        else:
            self.inside.meter(MeteredCall(usage, lambda: self._book(usage), self.hold))

    def _book(self, usage: TokenUsage) -> None:
        prices = (self.payer.prices, self.own.prices)
        rates = (book.rates(self.provider, self.model, usage) for book in prices)
        self.payer.add_usage(
            SOURCE,
            usage,
            provider=self.provider,
            model_name=self.model,
            rates=next((found for found in rates if found), None),
            hold=self.hold,
        )


@attrs.define(eq=False)
class _Events:
    """Reads the bytes of a stream of events as they pass."""

    reader: TrackedStream
    decoded: Callable[[bytes], bytes] | None
    rest: bytes = b""

    def see(self, part: bytes) -> None:
        """Read the chunks that a part of the stream completes."""
        if self.decoded is None:
            return
        *lines, self.rest = (self.rest + self.decoded(part)).split(b"\n")
        for line in lines:
            data = line.removeprefix(b"data:").strip()
            if data.startswith(b"{"):
                self.reader.see(orjson.loads(data))
            elif data == b"[DONE]":
                self.reader.complete()
                self.end()  # before the caller has the end of the stream, and logs a row

    def end(self) -> None:
        """Count the usage that was read."""
        self.reader.finish()


def _decoder(encoding: str) -> Callable[[bytes], bytes] | None:
    if encoding == "identity":
        return bytes
    return zlib.decompressobj(47).decompress if encoding in READABLE.split(", ") else None


def _observed(response: Any, events: _Events) -> Any:
    """Return the stream of a response that shows its bytes to a reader."""
    # httpx or its successor: the one that openai itself was built on
    http: Any = importlib.import_module(type(response).__module__.partition(".")[0])
    inner = response.stream

    class ObservedStream(http.AsyncByteStream):  # type: ignore[misc]
        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for part in inner:
                _quietly(events.see, part)
                yield part

        async def aclose(self) -> None:
            _quietly(events.end)
            await inner.aclose()

    return ObservedStream()


def _quietly(read: Callable[..., None], *arguments: bytes) -> None:
    try:
        read(*arguments)
    except Exception:
        log.exception("a stream could not be read for its usage; it goes on")


def metered_client(client: Any, meter: ModelMeter) -> Any:
    """Return a subclass of a client that reserves each request in the budgets that limit it."""

    class MeteredOpenAI(client):  # type: ignore[misc]
        async def post(self, path: str, **request: Any) -> Any:
            more = (request.get("options") or {}).get("extra_json")
            with meter.reserving(request.get("body"), more):
                return await super().post(path, **request)

    return MeteredOpenAI
