"""Errors of HTTP requests with the text that the server sent."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

Async = Callable[..., Awaitable[Any]]


def log_http_errors(function: Async) -> Async:
    """Decorate an async function: an httpx status error gets the server's `detail` as a note."""

    @functools.wraps(function)
    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return await function(*args, **kwargs)
        except Exception as error:
            response = getattr(error, "response", None)
            if response is not None and hasattr(response, "text"):
                error.add_note(f"HTTP {response.status_code} from {response.url}: {response.text}")
            raise

    return wrapped
