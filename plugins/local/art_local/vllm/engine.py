"""vLLM as an engine of the endpoint: a server is kept alive, requests go to it, each step's adapter
is loaded into it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import traceback
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path

import attrs
import torch  # noqa: TID253

from art_core.base.errors import EngineError, unknown
from art_core.endpoint.engine import Sampling, Token
from art_local.engine.protocol import StepWeights
from art_local.vllm.adapters import Adapters
from art_local.vllm.client import VllmClient, completion_body
from art_local.vllm.command import BASE
from art_local.vllm.loop import LoopThread, within
from art_local.vllm.requests import Requests
from art_local.vllm.server import Server
from art_local.vllm.sleep import Rest
from art_local.vllm.supervisor import Patience, Supervisor

CLOSE_TIMEOUT_S = 60.0
TICK_S = 0.25


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
        self._facts, self._sleeps = facts, sleeps
        self._timeout_s, self._patience = request_timeout_s, patience or Patience()
        self._loop = LoopThread("art-vllm")
        self._supervisor = Supervisor(launch, self._prepare, self._patience)
        self._rest = Rest(self._supervisor, request_timeout_s)
        self._adapters = Adapters(directory, self._loop, self._supervisor, self._rest)
        self._requests = Requests(
            self._loop, self._supervisor, self._rest, self._adapters, request_timeout_s
        )
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
    def adapters(self) -> list[str]:
        """The names that requests can ask for; "base" is the model itself."""
        return [BASE, *self._adapters.names]

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
        async with aclosing(self._requests.tokens(body)) as tokens:
            async for token in tokens:
                yield token

    def publish(self, adapter: str, weights: StepWeights) -> None:
        """Write the adapter for the server and load it; see `LocalEngine`."""
        self.check()
        self._adapters.publish(adapter, weights)

    def unload(self, adapter: str) -> None:
        """Stop serving an adapter and delete its directory; requests under way finish."""
        self._adapters.unload(adapter)

    @contextmanager
    def resting(self) -> Iterator[None]:
        """On a shared device: let requests end, let the server sleep, wake it after the block.

        New requests and adapters wait. Elsewhere this does nothing: server and trainer run side by
        side.
        """
        if not self._sleeps:
            yield
            return
        limit_s = self._timeout_s + self._patience.sleep_s
        self._loop.run(self._rest.begin(), limit_s, "putting vLLM to sleep")
        try:
            yield
        except BaseException as error:
            _let_go(error)
            raise
        finally:
            # what torch keeps for later is not there for a server that wakes up
            torch.cuda.empty_cache()
            self._loop.run(self._rest.end(), self._patience.start_s, "waking vLLM up")

    @property
    def ended(self) -> bool:
        """Whether the server failed too often to be started again."""
        return self._supervisor.ended is not None

    def check(self) -> None:
        """Raise EngineError when the server failed too often to be started again."""
        if self._supervisor.ended is not None:
            raise EngineError(*self._supervisor.ended.args)

    def step_metrics(self) -> dict[str, float]:
        """Return the server's own measurements since the last call."""
        limit_s = self._patience.start_s + self._patience.answer_s
        self._loop.run(self._look(), limit_s, "a last look")
        restarts, self._supervisor.restarts = self._supervisor.restarts, 0
        metrics = self._supervisor.gauges.take()
        return metrics | {"throughput/engine_restarts": float(restarts)}

    def tokenize(self, text: str) -> list[int]:
        """Return a text's tokens as the server's own tokenizer has them."""

        async def asked() -> list[int]:
            client = await self._supervisor.client(self._patience.start_s)
            return await client.tokenize(text)

        return self._loop.run(asked(), self._patience.load_s, "tokenizing a text")

    async def close(self) -> None:
        """End all requests with an EngineError, then the server; a second call does nothing."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        if self._loop.closed:
            return
        try:
            self._loop.run(self._stop(), CLOSE_TIMEOUT_S, "ending vLLM's server")
        finally:
            self._loop.close()
        self._adapters.delete()

    async def _supervise(self) -> asyncio.Task[None]:
        return asyncio.create_task(self._supervisor.run())

    async def _stop(self) -> None:
        self._supervising.cancel()
        await asyncio.gather(self._supervising, return_exceptions=True)

    async def _ready(self) -> None:
        # beyond the supervisor's own limit, whose error tells more
        await self._supervisor.client(self._patience.start_s + self._patience.load_s)

    async def _prepare(self, client: VllmClient) -> None:
        """Load all adapters into a new server and have it compute once: the first request compiles,
        which may take longer than a request should.
        """
        await self._adapters.load_all(client)
        first = completion_body([0], Sampling(max_tokens=1, stream=False), BASE, ())
        await within(self._patience.start_s, _drained(client.complete(first)), "compute")

    async def _look(self) -> None:
        client = await self._supervisor.client(self._patience.start_s)
        with suppress(EngineError, TimeoutError):
            async with asyncio.timeout(self._patience.answer_s):
                await self._supervisor.look(client)

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


def _let_go(error: BaseException | None) -> None:
    """Empty the frames that an error passed through: what a failed step computed is in them, for as
    long as somebody keeps the error.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


async def _drained(answers: AsyncGenerator[object, None]) -> None:
    async with aclosing(answers):
        async for _ in answers:
            pass
