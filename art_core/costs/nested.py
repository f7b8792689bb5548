"""Paid calls inside a tracked call: a response that is handed on from there is paid once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import attrs

from art_core.metrics.usage import COUNTS, TokenUsage


@attrs.frozen(eq=False)
class MeteredCall:
    """A call that a model's own client made; `book` adds its cost to a run."""

    usage: TokenUsage
    book: Callable[[], None]


@attrs.define(eq=False)
class CallsInside:
    """Calls that were paid inside one tracked call.

    `responses` are those that tracked calls inside it counted. `metered` are calls of a model's own
    client, which wait: if the tracked call returns one of them, it pays for it. `streams` says that
    the tracked call returns a stream, and pays for all of it.
    """

    responses: list[Any] = attrs.field(factory=list)
    metered: list[MeteredCall] = attrs.field(factory=list)
    streams: bool = False
    ended: bool = False

    @contextmanager
    def entered(self) -> Iterator[CallsInside]:
        """Collect calls inside the block, and in tasks and threads that it begins."""
        token = calls_inside.set(self)
        try:
            yield self
        finally:
            with suppress(ValueError):  # of a call that is dropped unfinished, in another context
                calls_inside.reset(token)

    def meter(self, call: MeteredCall) -> None:
        """Take a call of a model's own client."""
        if not self.ended:
            self.metered.append(call)
        elif not self.streams:
            call.book()

    def pays_for(self, usage: TokenUsage) -> TokenUsage:
        """Return the usage of the tracked call's own response, and drop the metered call that it
        is.
        """
        same = (call for call in self.metered if _counts(call.usage) == _counts(usage))
        found = next(same, None)
        if found is not None:
            self.metered.remove(found)
        return usage

    def end(self) -> None:
        """Book the metered calls that the tracked call did not return."""
        self.ended = True
        while self.metered:
            self.metered.pop().book()


calls_inside: ContextVar[CallsInside | None] = ContextVar("art_calls_inside", default=None)


def _counts(usage: TokenUsage) -> list[int]:
    return [getattr(usage, name) for name in COUNTS]
