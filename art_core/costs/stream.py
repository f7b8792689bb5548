"""Streams of a paid API: passed through as they are, while their usage is read from the chunks."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Self

import attrs

from art_core.costs.usage import COUNTS, TokenUsage, field, read_usage

log = logging.getLogger("art_core")


def is_stream(result: Any) -> bool:
    """Tell an iterator of chunks from a response."""
    return hasattr(result, "__aiter__") or hasattr(result, "__next__")


def usage_of_chunk(chunk: Any) -> TokenUsage | None:
    """Read what a chunk says of the usage so far.

    OpenAI puts it in the last chunk, or in the `response` of the last event; Anthropic puts the
    prompt in the first event's `message` and the answer's tokens so far in later ones; Gemini
    repeats it in every chunk.
    """
    for holder in (chunk, field(chunk, "response"), field(chunk, "message")):
        usage = None if holder is None else read_usage(holder)
        if usage is not None:
            return usage
    answered = field(chunk, "usage", "output_tokens")
    return None if answered is None else TokenUsage(output_tokens=answered)


def later(before: TokenUsage, after: TokenUsage) -> TokenUsage:
    """Combine what two chunks said: counts run on, so that the larger one is the newer."""
    return TokenUsage(
        **{name: max(getattr(before, name), getattr(after, name)) for name in COUNTS},
        service_tier=after.service_tier or before.service_tier,
        cost_usd=before.cost_usd if after.cost_usd is None else after.cost_usd,
    )


@attrs.define(eq=False)
class TrackedStream:
    """A stream of chunks, sync or async, that calls `finished(usage)` once, when it is over."""

    stream: Any
    finished: Callable[[TokenUsage], None]
    _usage: TokenUsage = attrs.field(factory=TokenUsage)
    _done: bool = False

    def _see(self, chunk: Any) -> Any:
        try:
            usage = usage_of_chunk(chunk)
        except Exception:
            log.exception("the usage in a chunk could not be read; the stream goes on")
            return chunk
        if usage is not None:
            self._usage = later(self._usage, usage)
        return chunk

    def _finish(self) -> None:
        if not self._done:
            self._done = True
            self.finished(self._usage)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return self._see(next(self.stream))
        except BaseException:
            self._finish()
            raise

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        try:
            return self._see(await anext(self.stream))
        except BaseException:
            self._finish()
            raise

    def __enter__(self) -> Self:
        self.stream.__enter__()
        return self

    def __exit__(self, *error: object) -> Any:
        self._finish()
        return self.stream.__exit__(*error)

    async def __aenter__(self) -> Self:
        await self.stream.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> Any:
        self._finish()
        return await self.stream.__aexit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def __del__(self) -> None:
        self._finish()
