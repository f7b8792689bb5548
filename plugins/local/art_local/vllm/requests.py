"""The requests under way in a vLLM server: asked on the engine's loop, answered to the caller's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any

from art_core.base.errors import EngineError
from art_core.endpoint.engine import Token
from art_local.vllm.adapters import Adapters
from art_local.vllm.client import RefusedError, ServerGoneError, VllmClient, tokens_of
from art_local.vllm.loop import LoopThread
from art_local.vllm.sleep import Rest
from art_local.vllm.supervisor import Supervisor

NOT_FOUND = 404
Event = list[Token] | EngineError
Deliver = Callable[[Event], None]


class Requests:
    """Sends requests and hands out their tokens; `timeout_s` bounds the wait for the next one."""

    def __init__(
        self,
        loop: LoopThread,
        supervisor: Supervisor,
        rest: Rest,
        adapters: Adapters,
        timeout_s: float,
    ) -> None:
        self._loop, self._supervisor, self._rest = loop, supervisor, rest
        self._adapters, self._timeout_s = adapters, timeout_s

    async def tokens(self, body: Mapping[str, Any]) -> AsyncGenerator[Token, None]:
        """Yield the tokens of one completion, to the loop that runs this; closing the generator
        aborts the request. EngineError when no token comes in time, or none can.
        """
        mail, deliver = _mailbox()
        work = self._loop.begin(self._produce(body, deliver))
        count = 0
        try:
            while True:
                for token in await self._next(mail, count):
                    count += 1
                    yield token
                    if token.finish is not None:
                        return
        finally:
            work.cancel()

    async def _next(self, mail: asyncio.Queue[Event], count: int) -> list[Token]:
        try:
            async with asyncio.timeout(self._timeout_s):
                event = await mail.get()
        except TimeoutError:
            raise EngineError(
                f"no token from vLLM within {self._timeout_s:g} s after {count} tokens; "
                f"{self._supervisor.requests} requests run"
            ) from None
        if isinstance(event, EngineError):
            raise event
        return event

    async def _produce(self, body: Mapping[str, Any], deliver: Deliver) -> None:
        try:
            async with self._rest.work(), self._counted():
                await self._request(body, deliver)
            deliver(EngineError("vLLM ended the sequence without a finish reason"))
        except EngineError as error:
            deliver(error)
        except asyncio.CancelledError:
            deliver(EngineError("the engine is closed"))
            raise
        except Exception as error:
            deliver(EngineError(f"{type(error).__name__}: {error}"))

    @asynccontextmanager
    async def _counted(self) -> AsyncIterator[None]:
        self._supervisor.requests += 1
        try:
            yield
        finally:
            self._supervisor.requests -= 1

    async def _request(self, body: Mapping[str, Any], deliver: Deliver) -> None:
        client = await self._supervisor.client(self._timeout_s)
        try:
            await _exchange(client, body, deliver)
        except ServerGoneError as error:
            raise await self._supervisor.why(client, error) from error
        except RefusedError as error:
            if error.status >= 500:
                raise await self._supervisor.why(client, error) from error
            # a server that is not ours was started anew and does not know the adapter
            if error.status != NOT_FOUND or not await self._adapters.load_again(
                client, body["model"]
            ):
                raise
            await _exchange(client, body, deliver)


async def _exchange(client: VllmClient, body: Mapping[str, Any], deliver: Deliver) -> None:
    async with aclosing(client.complete(body)) as answers:
        async for answer in answers:
            tokens = tokens_of(answer, body["logprobs"])
            if tokens:
                deliver(tokens)


def _mailbox() -> tuple[asyncio.Queue[Event], Deliver]:
    """A queue of the running loop, and how another thread puts something into it."""
    mail: asyncio.Queue[Event] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def deliver(event: Event) -> None:
        try:
            loop.call_soon_threadsafe(mail.put_nowait, event)
        except RuntimeError:
            return  # nobody waits any more: the caller's loop is closed

    return mail, deliver
