"""The running requests of a vLLM server: sent from the engine's loop, delivered to the caller's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from art_core.base.errors import EngineError
from art_core.endpoint.engine import Token
from art_local.vllm.adapters import Adapters
from art_local.vllm.client import ServerGoneError, VllmClient, VllmStatusError, tokens_of
from art_local.vllm.loop import LoopThread
from art_local.vllm.sleep import Sleep
from art_local.vllm.supervisor import Supervisor

NOT_FOUND = 404
Delivery = list[Token] | EngineError
Deliver = Callable[[Delivery], None]
T = TypeVar("T")


class Requests:
    """Sends requests and yields their tokens; `timeout_s` limits the wait for the next token."""

    def __init__(
        self,
        loop: LoopThread,
        supervisor: Supervisor,
        sleep: Sleep,
        adapters: Adapters,
        timeout_s: float,
    ) -> None:
        self._loop, self._supervisor, self._sleep = loop, supervisor, sleep
        self._adapters, self._timeout_s = adapters, timeout_s

    async def tokens(self, body: Mapping[str, Any]) -> AsyncGenerator[Token, None]:
        """Yield the tokens of one completion on the caller's loop; closing the generator aborts the
        request. EngineError if no token arrives in time, or the request fails.
        """
        queue, deliver = _queue()
        work = self._loop.submit(self._produce(body, deliver))
        count = 0
        try:
            while True:
                for token in await self._next(queue, count):
                    count += 1
                    yield token
                    if token.finish is not None:
                        return
        finally:
            work.cancel()

    async def answer(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the whole answer to a request that is not streamed; EngineError if it fails or
        takes longer than the timeout.
        """
        work = asyncio.wrap_future(self._loop.submit(self._answered(body)))
        try:
            async with asyncio.timeout(self._timeout_s):
                return await work
        except TimeoutError:
            raise EngineError(f"no answer from vLLM within {self._timeout_s:g} s") from None

    async def _answered(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        async with self._sleep.awake(), self._counted():
            return await self._request(body["model"], partial(_first, body=body))

    async def _next(self, queue: asyncio.Queue[Delivery], count: int) -> list[Token]:
        try:
            async with asyncio.timeout(self._timeout_s):
                event = await queue.get()
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
            async with self._sleep.awake(), self._counted():
                send = partial(_exchange, body=body, deliver=deliver)
                await self._request(body["model"], send)
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

    async def _request(self, adapter: str, send: Callable[[VllmClient], Awaitable[T]]) -> T:
        client = await self._supervisor.client(self._timeout_s)
        try:
            return await send(client)
        except ServerGoneError as error:
            raise await self._supervisor.cause(client, error) from error
        except VllmStatusError as error:
            if error.status >= 500:
                raise await self._supervisor.cause(client, error) from error
            # a server at engine_url was restarted and has lost the adapter
            if error.status != NOT_FOUND or not await self._adapters.load_again(client, adapter):
                raise
            return await send(client)


async def _exchange(client: VllmClient, body: Mapping[str, Any], deliver: Deliver) -> None:
    async with aclosing(client.complete(body)) as answers:
        async for answer in answers:
            tokens = tokens_of(answer, body["logprobs"])
            if tokens:
                deliver(tokens)


async def _first(client: VllmClient, body: Mapping[str, Any]) -> Mapping[str, Any]:
    async with aclosing(client.complete(body)) as answers:
        return await anext(answers)


def _queue() -> tuple[asyncio.Queue[Delivery], Deliver]:
    """Return a queue of the running loop, and a function by which other threads add to it."""
    queue: asyncio.Queue[Delivery] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def deliver(event: Delivery) -> None:
        try:
            loop.call_soon_threadsafe(queue.put_nowait, event)
        except RuntimeError:
            return  # the caller's loop is closed

    return queue, deliver
