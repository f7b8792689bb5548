"""Streams of a paid API: chunks pass unchanged, and their usage is read."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import attrs

from art_core.base.fields import field
from art_core.metrics.providers import read_delta
from art_core.metrics.readers import read_usage
from art_core.metrics.receipt import COUNTS, TokenUsage

log = logging.getLogger("art_core")

CUT = "the rest of a stream that was broken off"
_LAST_EVENTS = ("message_stop", "response.completed", "response.incomplete", "response.failed")


def parts_of(chunk: Any) -> Iterator[Any]:
    """Yield the parts that may hold usage: the chunk, the `response` of OpenAI's last event, the
    `message` of Anthropic's first one, the `chunk` of an OpenAI helper's event, the `data` of
    Mistral's, the `x_groq` of Groq's last one.
    """
    yield chunk
    for name in ("response", "message", "chunk", "data", "x_groq"):
        part = field(chunk, name)
        if part is not None:
            yield part


def later(before: TokenUsage, after: TokenUsage) -> TokenUsage:
    """Combine the usage of two chunks whose counts grow: the larger count is the newer."""
    counts = {name: max(getattr(before, name), getattr(after, name)) for name in COUNTS}
    cost = before.cost_usd if after.cost_usd is None else after.cost_usd
    return _joined(before, after, counts, cost)


def more(before: TokenUsage, after: TokenUsage) -> TokenUsage:
    """Combine the usage of two chunks of LangChain: each has the tokens that it adds."""
    counts = {name: getattr(before, name) + getattr(after, name) for name in COUNTS}
    costs = [usage.cost_usd for usage in (before, after) if usage.cost_usd is not None]
    return _joined(before, after, counts, sum(costs) if costs else None)


def _joined(
    before: TokenUsage, after: TokenUsage, counts: dict[str, int], cost: float | None
) -> TokenUsage:
    return TokenUsage(
        **counts,
        service_tier=after.service_tier or before.service_tier,
        speed=after.speed or before.speed,
        geography=after.geography or before.geography,
        cost_usd=cost,
        unread=dict.fromkeys((*before.unread, *after.unread)),
    )


def is_last(chunk: Any) -> bool:
    """Return whether a chunk ends the answer: no usage follows."""
    event = field(chunk, "type")
    if isinstance(event, str) and event in _LAST_EVENTS:
        return True
    if field(chunk, "usage") is not None:
        return field(chunk, "delta", "stop_reason") is not None or _finished(chunk, "choices")
    return _finished(chunk, "candidates")


def _finished(chunk: Any, name: str) -> bool:
    """Return whether a chunk's choices are finished, or absent as in OpenAI's chunk of usage."""
    choices = field(chunk, name)
    return isinstance(choices, list) and all(
        field(choice, "finish_reason") or field(choice, "finishReason") for choice in choices
    )


@attrs.define(eq=False)
class ChunkReader:
    """Reads chunks by a function that reads whole responses.

    It may fail at chunks without usage, so an `error` counts only if no chunk could be read.
    """

    read: Callable[[Any], Any]
    found_any: bool = False
    error: Exception | None = None

    def of(self, chunk: Any) -> Any:
        """Return the first value that is read from a part of a chunk, else None."""
        for part in parts_of(chunk):
            try:
                found = self.read(part)
            except Exception as error:
                self.error = error
                continue
            if found is not None:
                self.found_any = True
                return found
        return None

    def log_error(self) -> None:
        """Log the error if nothing could be read."""
        if self.error is not None and not self.found_any:
            log.error("no chunk of a stream could be read for its cost", exc_info=self.error)


@attrs.define(eq=False)
class TrackedStream:
    """A stream of chunks, sync or async, that calls `finished(usage)` once, at its end.

    `tokens` reads the usage of each chunk, `cost` the US dollars that it reports; both return None
    for a chunk without. Each chunk is read inside the context `entered()`.
    """

    stream: Any
    finished: Callable[[TokenUsage], None]
    tokens: ChunkReader = attrs.field(default=read_usage, converter=ChunkReader)
    cost: ChunkReader = attrs.field(default=lambda _: None, converter=ChunkReader)
    entered: Callable[[], AbstractContextManager[Any]] = nullcontext
    _usage: TokenUsage = attrs.field(factory=TokenUsage)
    _usd: float | None = None
    _done: bool = False
    _whole: bool = False

    def see(self, chunk: Any) -> Any:
        """Read a chunk and return it."""
        try:
            usage = self.tokens.of(chunk) or read_delta(chunk)
            usd = self.cost.of(chunk)
            self._whole = self._whole or any(map(is_last, parts_of(chunk)))
        except Exception:
            log.exception("a chunk could not be looked into; the stream goes on")
            return chunk
        if usage is not None:
            adds = field(chunk, "usage_metadata", "input_tokens") is not None
            self._usage = (more if adds else later)(self._usage, usage)
        self._usd = self._usd if usd is None else usd
        return chunk

    def complete(self) -> None:
        """Note that the stream is complete."""
        self._whole = True

    def finish(self) -> None:
        """Report the usage of the chunks so far, once."""
        if not self._done:
            self._done = True
            self.tokens.log_error()
            self.cost.log_error()
            usage, usd = self._usage, self._usd
            if not self._whole and usage.total_tokens:
                usage = attrs.evolve(usage, unread=(*usage.unread, CUT))
            self.finished(usage if usd is None else attrs.evolve(usage, cost_usd=usd))

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            with self.entered():
                chunk = next(self.stream)
            return self.see(chunk)
        except StopIteration:
            self.complete()
            self.finish()
            raise
        except BaseException:
            self.finish()
            raise

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        try:
            with self.entered():
                chunk = await anext(self.stream)
            return self.see(chunk)
        except StopAsyncIteration:
            self.complete()
            self.finish()
            raise
        except BaseException:
            self.finish()
            raise

    def __enter__(self) -> Self:
        self.stream.__enter__()
        return self

    def __exit__(self, *error: object) -> Any:
        self.finish()
        return self.stream.__exit__(*error)

    async def __aenter__(self) -> Self:
        await self.stream.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> Any:
        self.finish()
        return await self.stream.__aexit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def __del__(self) -> None:
        self.finish()
