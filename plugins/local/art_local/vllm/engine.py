"""vLLM as an engine of the endpoint: requests go to the server, each step's adapter is loaded into
it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import logging
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import attrs

from art_core.endpoint.engine import Sampling, Token
from art_core.errors import EngineError, unknown
from art_local.engine.local import StepWeights
from art_local.vllm.client import (
    RefusedError,
    ServerGoneError,
    VllmClient,
    completion_body,
    tokens_of,
)
from art_local.vllm.command import BASE
from art_local.vllm.loop import LoopThread
from art_local.vllm.server import Server
from art_local.vllm.supervisor import Patience, Supervisor

log = logging.getLogger("art_local")
CLOSE_TIMEOUT_S = 60.0
TICK_S = 0.25
NOT_FOUND = 404
T = TypeVar("T")
Deliver = Callable[[list[Token] | EngineError], None]


@attrs.frozen(kw_only=True)
class ModelFacts:
    """What the engine must know of the base model: its context, vocabulary size and end tokens."""

    context_length: int
    vocabulary: int
    ends: tuple[int, ...]


class VllmEngine:
    """Samples from a base model and its LoRA adapters in a vLLM server (see `LocalEngine`).

    - `launch` starts the server: the first time here, and again when it died.
    - `directory` is where adapters are written for the server to read; the engine owns it.
    - `sleeps`: the trainer has the same CUDA device, so the server sleeps while it trains.
    """

    name = "vllm"

    def __init__(
        self,
        launch: Callable[[], Server],
        facts: ModelFacts,
        directory: Path,
        *,
        request_timeout_s: float = 600.0,
        patience: Patience | None = None,
        sleeps: bool = False,
    ) -> None:
        self.context_length = facts.context_length
        self._facts, self._directory, self._sleeps = facts, directory, sleeps
        self._timeout_s, self._patience = request_timeout_s, patience or Patience()
        self._adapters: dict[str, Path] = {}
        self._written = itertools.count(1)
        self._sleeper: VllmClient | None = None
        shutil.rmtree(directory, ignore_errors=True)
        self._loop = LoopThread("art-vllm")
        self._supervisor = Supervisor(launch, self._prepare, self._patience)
        self._open, self._idle = asyncio.Event(), asyncio.Event()
        self._open.set()
        self._idle.set()
        self._supervising = self._loop.run(self._supervise(), CLOSE_TIMEOUT_S, "the engine's loop")

    def wait_ready(self, tick: Callable[[str], None] = lambda _: None) -> None:
        """Wait for the server's first answer; `tick` is called meanwhile with its newest line.

        Raises EngineError, with the engine closed, when the server does not start.
        """
        ready = self._loop.begin(self._ready())
        try:
            while not concurrent.futures.wait([ready], TICK_S).done:
                tick(self._supervisor.said)
            ready.result()
        except BaseException:
            ready.cancel()
            self._close()
            raise

    @property
    def _start_limit_s(self) -> float:
        """Beyond the supervisor's own, whose error tells more."""
        return self._patience.start_s + self._patience.load_s

    @property
    def adapters(self) -> list[str]:
        """The names that requests can ask for; "base" is the model itself."""
        return [BASE, *self._adapters]

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, adapter: str = BASE
    ) -> AsyncGenerator[Token, None]:
        """Sample one sequence; see `art_core.endpoint.engine.Engine`. The model's own end tokens
        always end it.
        """
        self._check_request(prompt_ids, sampling, adapter)
        room = self.context_length - len(prompt_ids)
        sampling = attrs.evolve(sampling, max_tokens=min(sampling.max_tokens, room))
        body = completion_body(prompt_ids, sampling, adapter, self._facts.ends)
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

    def publish(self, adapter: str, weights: StepWeights) -> None:
        """Write the adapter for the server and load it; see `LocalEngine`."""
        self.check()
        # A path of its own each time: the server's prefix cache then never mixes two weights.
        place = self._directory / f"{next(self._written):06d}-{adapter}"
        place.mkdir(parents=True)
        before = self._adapters.get(adapter)
        try:
            weights.write(place)
            self._adapters[adapter] = place
            limit_s = self._patience.start_s + self._patience.load_s
            self._run(self._load(adapter, place), limit_s, f"loading {adapter}")
        except BaseException:
            if before is None:
                self._adapters.pop(adapter, None)
            else:
                self._adapters[adapter] = before
            shutil.rmtree(place, ignore_errors=True)
            raise
        if before is not None:
            shutil.rmtree(before, ignore_errors=True)

    def unload(self, adapter: str) -> None:
        """Stop serving an adapter and delete its directory; requests under way finish."""
        place = self._adapters.pop(adapter, None)
        if place is None:
            return
        try:
            self._run(self._unload(adapter), self._patience.load_s, f"unloading {adapter}")
        except EngineError as error:
            # it is not asked for any more, and a new server will not have it
            log.warning("adapter %s stays in vLLM's server: %s", adapter, error)
        shutil.rmtree(place, ignore_errors=True)

    @contextmanager
    def resting(self) -> Iterator[None]:
        """On a shared device: let requests end, let the server sleep, wake it after the block.

        New requests wait. Elsewhere this does nothing: server and trainer run side by side.
        """
        if not self._sleeps:
            yield
            return
        limit_s = self._timeout_s + self._patience.sleep_s
        self._run(self._fall_asleep(), limit_s, "putting vLLM to sleep")
        try:
            yield
        finally:
            self._run(self._wake_up(), self._patience.start_s, "waking vLLM up")

    def check(self) -> None:
        """Raise EngineError when the server failed too often to be started again."""
        if self._supervisor.ended is not None:
            raise EngineError(*self._supervisor.ended.args)

    def step_metrics(self) -> dict[str, float]:
        """Return the server's own measurements since the last call."""
        self._run(self._look(), self._patience.start_s + self._patience.answer_s, "a last look")
        restarts, self._supervisor.restarts = self._supervisor.restarts, 0
        metrics = self._supervisor.gauges.take()
        return metrics | {"throughput/engine_restarts": float(restarts)}

    def tokenize(self, text: str) -> list[int]:
        """Return a text's tokens as the server's own tokenizer has them."""

        async def asked() -> list[int]:
            client = await self._supervisor.client(self._patience.start_s)
            return await client.tokenize(text)

        return self._run(asked(), self._patience.load_s, "tokenizing a text")

    async def close(self) -> None:
        """End all requests with an EngineError, then the server; a second call does nothing."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        if self._loop.closed:
            return
        try:
            self._run(self._stop(), CLOSE_TIMEOUT_S, "ending vLLM's server")
        finally:
            self._loop.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _run(self, work: Coroutine[Any, Any, T], timeout_s: float, what: str) -> T:
        return self._loop.run(work, timeout_s, what)

    async def _supervise(self) -> asyncio.Task[None]:
        return asyncio.create_task(self._supervisor.run())

    async def _stop(self) -> None:
        self._supervising.cancel()
        await asyncio.gather(self._supervising, return_exceptions=True)

    async def _ready(self) -> None:
        await self._supervisor.client(self._start_limit_s)

    def _check_request(self, prompt_ids: Sequence[int], sampling: Sampling, adapter: str) -> None:
        if not prompt_ids or len(prompt_ids) >= self.context_length:
            raise EngineError(
                f"a prompt of {len(prompt_ids)} tokens; "
                f"between 1 and {self.context_length - 1} fit into the context"
            )
        if sampling.max_tokens < 1:
            raise EngineError(f"max_tokens must be at least 1, got {sampling.max_tokens}")
        strange = [t for t in prompt_ids if not 0 <= t < self._facts.vocabulary]
        if strange:
            raise EngineError(
                f"token {strange[0]} is outside the vocabulary of {self._facts.vocabulary}"
            )
        if adapter not in self.adapters:
            raise EngineError(unknown("adapter", adapter, self.adapters, known_as="loaded"))

    async def _next(
        self, mail: asyncio.Queue[list[Token] | EngineError], count: int
    ) -> list[Token]:
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

    async def _produce(self, body: dict[str, Any], deliver: Deliver) -> None:
        try:
            async with self._counted():
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
        await self._open.wait()
        self._supervisor.requests += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._supervisor.requests -= 1
            if not self._supervisor.requests:
                self._idle.set()

    async def _request(self, body: dict[str, Any], deliver: Deliver) -> None:
        client = await self._supervisor.client(self._timeout_s)
        try:
            await self._exchange(client, body, deliver)
        except ServerGoneError as error:
            raise await self._supervisor.why(client, error) from error
        except RefusedError as error:
            if error.status >= 500:
                raise await self._supervisor.why(client, error) from error
            place = self._adapters.get(body["model"])
            if error.status != NOT_FOUND or place is None:
                raise
            # a server that is not ours was started anew and does not know the adapter
            await client.load_adapter(body["model"], str(place))
            await self._exchange(client, body, deliver)

    async def _exchange(self, client: VllmClient, body: dict[str, Any], deliver: Deliver) -> None:
        async with aclosing(client.complete(body)) as answers:
            async for answer in answers:
                tokens = tokens_of(answer, body["logprobs"])
                if tokens:
                    deliver(tokens)

    async def _load(self, adapter: str, place: Path) -> None:
        while True:
            client = await self._supervisor.client(self._patience.start_s)
            try:
                loading = client.load_adapter(adapter, str(place))
                return await self._within(self._patience.load_s, loading, f"load {adapter}")
            except ServerGoneError as error:
                # a new server loads all adapters, this one too, before it counts as ready
                log.warning("%s", await self._supervisor.why(client, error))

    async def _unload(self, adapter: str) -> None:
        client = await self._supervisor.client(self._patience.load_s)
        await client.unload_adapter(adapter)

    async def _prepare(self, client: VllmClient) -> None:
        """Load all adapters into a new server and have it compute once: the first request compiles,
        which may take longer than a request should.
        """
        for adapter, place in list(self._adapters.items()):
            loading = client.load_adapter(adapter, str(place))
            await self._within(self._patience.load_s, loading, f"load {adapter}")
        first = completion_body([0], Sampling(max_tokens=1, stream=False), BASE, ())
        await self._within(self._patience.start_s, _drained(client.complete(first)), "compute")

    async def _look(self) -> None:
        client = await self._supervisor.client(self._patience.start_s)
        with suppress(EngineError, TimeoutError):
            async with asyncio.timeout(self._patience.answer_s):
                await self._supervisor.look(client)

    async def _fall_asleep(self) -> None:
        self._open.clear()
        try:
            await self._within(self._timeout_s, self._idle.wait(), "end its requests")
            self._sleeper = await self._supervisor.client(self._patience.start_s)
            self._supervisor.awake.clear()
            await self._within(self._patience.sleep_s, self._sleeper.sleep(), "fall asleep")
        except BaseException as error:
            self._supervisor.condemn(f"it did not fall asleep: {error}")
            self._supervisor.awake.set()
            self._open.set()
            raise

    async def _wake_up(self) -> None:
        self._supervisor.awake.set()
        try:
            client = await self._supervisor.client(self._patience.start_s)
            if client is self._sleeper:  # else it died in its sleep, and another one is awake
                await self._within(self._patience.sleep_s, client.wake(), "wake up")
        except EngineError as error:
            # a server started anew is awake; if none comes up, publishing says so
            self._supervisor.condemn(f"it did not wake up: {error}")
        finally:
            self._sleeper = None
            self._open.set()

    async def _within(self, seconds: float, work: Coroutine[Any, Any, T], what: str) -> T:
        try:
            async with asyncio.timeout(seconds):
                return await work
        except TimeoutError:
            raise EngineError(f"vLLM did not {what} within {seconds:g} s") from None


async def _drained(answers: AsyncGenerator[Any, None]) -> None:
    async with aclosing(answers):
        async for _ in answers:
            pass


def _mailbox() -> tuple[asyncio.Queue[list[Token] | EngineError], Deliver]:
    """A queue of the running loop, and how another thread puts something into it."""
    mail: asyncio.Queue[list[Token] | EngineError] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def deliver(event: list[Token] | EngineError) -> None:
        try:
            loop.call_soon_threadsafe(mail.put_nowait, event)
        except RuntimeError:
            return  # nobody waits any more: the caller's loop is closed

    return mail, deliver
