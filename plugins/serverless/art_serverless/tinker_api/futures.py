"""Requests that are answered later: the client gets an id at once, and asks for the result."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import Any

import attrs

from art_core import ArtError, ConfigError
from art_core.endpoint.errors import RequestError

log = logging.getLogger("art_serverless")

Result = bytes | dict[str, Any]
KEPT_S = 120.0
"""Seconds that a result stays after it was sent: the connection may have failed."""
UNASKED_S = 3600.0
MAX_PENDING = 10_000


@attrs.frozen
class Failed:
    """Why work failed, and whether the request was at fault."""

    reason: str
    by_user: bool = attrs.field(kw_only=True)


@attrs.define(eq=False)
class Pending:
    """A request that runs or has ended, its owner, and when its result was last of use."""

    owner: str
    task: asyncio.Task[Result | Failed]
    touched: float = attrs.field(factory=time.monotonic)
    is_sent: bool = False


class Futures:
    """The requests of all clients, by id. A request that is sent again has the id of the first."""

    def __init__(self) -> None:
        self._pending: dict[str, Pending] = {}

    def submit(self, owner: str, key: str, work: Coroutine[Any, Any, Result]) -> str:
        """Begin work; return its id, that of earlier work under the same key if there is any.

        Raises RequestError (429) if too many requests wait.
        """
        request_id = f"{owner}:{key}"
        if request_id in self._pending:
            work.close()
            return request_id
        if len(self._pending) >= MAX_PENDING:
            self.sweep(kept_s=0.0)
        if len(self._pending) >= MAX_PENDING:
            work.close()
            raise RequestError(429, f"{MAX_PENDING} requests wait for their results; ask later")
        self._pending[request_id] = Pending(owner, asyncio.create_task(_outcome(work)))
        return request_id

    async def result(self, request_id: str, wait_s: float) -> Result | Failed | None:
        """Return a result; None if there is none within `wait_s`. Raises RequestError
        (404) for an id that is not known.
        """
        pending = self._pending.get(request_id)
        if pending is None:
            raise RequestError(
                404,
                f"no request {request_id!r:.200} is known: its session ended, its result was "
                "fetched before, or the server was restarted and its work is lost. Saved "
                "checkpoints are on disk: create a training client from the last one",
            )
        done, _ = await asyncio.wait({pending.task}, timeout=wait_s)
        if not done:
            return None
        pending.touched, pending.is_sent = time.monotonic(), True
        if pending.task.cancelled():
            raise RequestError(410, "the request was cancelled: its session ended")
        return pending.task.result()

    def cancel(self, request_id: str) -> None:
        """Stop a request if it runs."""
        if (pending := self._pending.get(request_id)) is not None:
            pending.task.cancel()

    def cancel_of(self, owner: str) -> None:
        """Stop and forget all requests of an owner."""
        for request_id, pending in list(self._pending.items()):
            if pending.owner == owner:
                pending.task.cancel()
                del self._pending[request_id]

    def sweep(self, kept_s: float = KEPT_S) -> None:
        """Forget results that were sent so many seconds ago, and those that were not asked for."""
        now = time.monotonic()
        for request_id, pending in list(self._pending.items()):
            if pending.task.done():
                limit = kept_s if pending.is_sent else UNASKED_S
                if now - pending.touched > limit:
                    del self._pending[request_id]


async def _outcome(work: Coroutine[Any, Any, Result]) -> Result | Failed:
    """Return the result of work, or why it failed, for the client that asks for it."""
    try:
        return await work
    except Exception as raised:
        error = _first(raised)
        if isinstance(error, ConfigError | RequestError):
            return Failed(str(error), by_user=True)
        if isinstance(error, ArtError):
            return Failed(str(error), by_user=False)
        log.error("a request failed", exc_info=raised)
        return Failed(f"{type(error).__name__}: {error}", by_user=False)


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error
