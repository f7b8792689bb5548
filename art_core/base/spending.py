"""US dollars that the attempt which runs in this context has paid for calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import attrs


@attrs.define
class Spending:
    """US dollars of the paid calls of one attempt. With a limit, `held` are those and what its
    calls in flight cost at most, and `exceeded` is the error once they were more.
    """

    usd: float = 0.0
    held: float = 0.0
    exceeded: Any = None


active_spending: ContextVar[Spending | None] = ContextVar("art_active_spending", default=None)


def note_spent(usd: float | None) -> None:
    """Count a paid call for the attempt that runs in this context, if one does."""
    spending = active_spending.get()
    if spending is not None:
        spending.usd += usd or 0.0


@contextmanager
def counting_dollars() -> Iterator[Spending]:
    """Count the paid calls of the block and of tasks and threads that it starts."""
    spending = Spending()
    token = active_spending.set(spending)
    try:
        yield spending
    finally:
        active_spending.reset(token)
