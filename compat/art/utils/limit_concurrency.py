"""Limit how many calls of a function run at the same time."""

from __future__ import annotations

import asyncio
import functools
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

Async = Callable[..., Awaitable[Any]]


def limit_concurrency(
    n: int, derive_key: Callable[..., str] | None = None
) -> Callable[[Async], Async]:
    """Return a decorator after which at most `n` calls of an async function run at the same time.

    With `derive_key`, which gets the arguments, at most `n` for each key.
    """
    slots: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(n))

    def decorate(function: Async) -> Async:
        @functools.wraps(function)
        async def limited(*args: Any, **kwargs: Any) -> Any:
            async with slots[derive_key(*args, **kwargs) if derive_key else ""]:
                return await function(*args, **kwargs)

        return limited

    return decorate
