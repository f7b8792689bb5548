"""The vLLM engine: a supervised server that gets the requests and each step's adapter."""

from __future__ import annotations

import asyncio
import concurrent.futures
import traceback
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path

import attrs
import torch  # noqa: TID253

from art_core.base.errors import ConfigError, EngineError, unknown
from art_core.endpoint.engine import Sampling, Token
from art_local.engine.protocol import BASE, StepWeights
from art_local.images.reader import ImageReader
from art_local.vllm.adapters import Adapters
from art_local.vllm.client import VllmClient, completion_body, scores_of, scoring_body
from art_local.vllm.loop import LoopThread, within
from art_local.vllm.requests import Requests
from art_local.vllm.server import Server
from art_local.vllm.sleep import Sleep
from art_local.vllm.supervisor import Supervisor, Timeouts

CLOSE_TIMEOUT_S = 60.0
TICK_S = 0.25


@attrs.frozen(kw_only=True)
class ModelFacts:
    """A base model's context length, vocabulary size and end tokens."""

    context_length: int
    vocabulary: int
    ends: tuple[int, ...]


class VllmEngine:
    """Samples from a base model and its LoRA adapters in a vLLM server (see `LocalEngine`).

    - `launch` starts a server: at first, and again after a failure.
    - `directory`: adapters are written there for the server; the engine deletes it.
    - `sleeps`: the server shares the trainer's CUDA device and sleeps during training.
    """

    name = "vllm"
    is_rounded = False
    images_refused: str | None = "engine 'vllm' is given texts only here"

    def __init__(
        self,
        launch: Callable[[], Server],
        facts: ModelFacts,
        directory: Path,
        *,
        request_timeout_s: float = 600.0,
        timeouts: Timeouts | None = None,
        sleeps: bool = False,
    ) -> None:
        self.context_length = facts.context_length
        self._facts, self._sleeps = facts, sleeps
        self._timeout_s, self._timeouts = request_timeout_s, timeouts or Timeouts()
        self._loop = LoopThread("art-vllm")
        self._supervisor = Supervisor(launch, self._prepare, self._timeouts)
        self._sleep = Sleep(self._supervisor, request_timeout_s)
        self._adapters = Adapters(directory, self._loop, self._supervisor, self._sleep)
        self._requests = Requests(
            self._loop, self._supervisor, self._sleep, self._adapters, request_timeout_s
        )
        self._supervising = self._loop.run(self._supervise(), CLOSE_TIMEOUT_S, "the engine's loop")

    def wait_ready(self, tick: Callable[[str], None] = lambda _: None) -> None:
        """Wait until the server is ready; `tick` is called with its newest log line meanwhile.

        Raises EngineError, with the engine closed, if the server does not start.
        """
        ready = self._loop.submit(self._ready())
        try:
            while not concurrent.futures.wait([ready], TICK_S).done:
                tick(self._supervisor.log_line)
            ready.result()
        except BaseException:
            ready.cancel()
            self._close()
            raise

    @property
    def adapters(self) -> list[str]:
        """The names that requests can use; "base" is the base model."""
        return [BASE, *self._adapters.names]

    def read_images(self, _: ImageReader) -> None:
        """Raise EngineError: `images_refused` is never None."""
        raise EngineError(str(self.images_refused))

    async def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        adapter: str = BASE,
        images: Sequence[str] = (),
    ) -> AsyncGenerator[Token, None]:
        """Sample one sequence; see `art_core.endpoint.engine.Engine`. The model's own end tokens
        always end it.
        """
        if images:
            raise EngineError(str(self.images_refused))
        self._check_request(prompt_ids, sampling, adapter)
        room = self.context_length - len(prompt_ids)
        sampling = attrs.evolve(sampling, max_tokens=min(sampling.max_tokens, room))
        body = completion_body(prompt_ids, sampling, adapter, self._facts.ends)
        async with aclosing(self._requests.tokens(body)) as tokens:
            async for token in tokens:
                yield token

    async def score(self, ids: Sequence[int], adapter: str) -> list[float]:
        """Return the log-probs of a text; see `art_core.endpoint.engine.ScoringEngine`. One token
        is sampled too, which vLLM needs.
        """
        self._check_ids(ids)
        self._check_adapter(adapter)
        return scores_of(await self._requests.answer(scoring_body(ids, adapter)), ids)

    def publish(self, adapter: str, weights: StepWeights) -> None:
        """Write the adapter for the server and load it; see `LocalEngine`."""
        self.check()
        self._adapters.publish(adapter, weights)

    def unload(self, adapter: str) -> None:
        """Stop serving an adapter and delete its directory; running requests finish."""
        self._adapters.unload(adapter)

    @contextmanager
    def asleep(self) -> Iterator[None]:
        """On a shared device: wait for running requests, put the server to sleep, wake it up after
        the block. New requests and adapters wait.

        On a device of its own the server runs beside the trainer, and this does nothing.
        """
        if not self._sleeps:
            yield
            return
        limit_s = self._timeout_s + self._timeouts.sleep_s
        self._loop.run(self._sleep.start(), limit_s, "putting vLLM to sleep")
        try:
            yield
        except BaseException as error:
            _clear_frames(error)
            raise
        finally:
            # free torch's cache, which the server needs to wake up
            torch.cuda.empty_cache()
            self._loop.run(self._sleep.end(), self._timeouts.start_s, "waking vLLM up")

    @property
    def ended(self) -> bool:
        """Whether the server has failed too often and is not restarted."""
        return self._supervisor.ended is not None

    def check(self) -> None:
        """Raise EngineError if the server has failed too often and is not restarted."""
        if self._supervisor.ended is not None:
            raise EngineError(*self._supervisor.ended.args)

    def step_metrics(self) -> dict[str, float]:
        """Return the server's own measurements since the last call."""
        limit_s = self._timeouts.start_s + self._timeouts.answer_s
        self._loop.run(self._sample(), limit_s, "reading the measurements")
        restarts, self._supervisor.restarts = self._supervisor.restarts, 0
        metrics = self._supervisor.metrics.take()
        return metrics | {"throughput/engine_restarts": float(restarts)}

    def tokenize(self, text: str) -> list[int]:
        """Return a text's tokens by the server's own tokenizer."""

        async def request() -> list[int]:
            client = await self._supervisor.client(self._timeouts.start_s)
            return await client.tokenize(text)

        return self._loop.run(request(), self._timeouts.load_s, "tokenizing a text")

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
        # longer than the supervisor's own limit, whose error has more details
        await self._supervisor.client(self._timeouts.start_s + self._timeouts.load_s)

    async def _prepare(self, client: VllmClient) -> None:
        """Load all adapters into a new server and sample one token: the first request compiles,
        which may take longer than the timeout of a request.
        """
        await self._adapters.load_all(client)
        first = completion_body([0], Sampling(max_tokens=1, stream=False), BASE, ())
        await within(self._timeouts.start_s, _drained(client.complete(first)), "compute")

    async def _sample(self) -> None:
        client = await self._supervisor.client(self._timeouts.start_s)
        with suppress(EngineError, TimeoutError):
            async with asyncio.timeout(self._timeouts.answer_s):
                await self._supervisor.sample(client)

    def _check_request(self, prompt_ids: Sequence[int], sampling: Sampling, adapter: str) -> None:
        if not prompt_ids or len(prompt_ids) >= self.context_length:
            raise EngineError(
                f"a prompt of {len(prompt_ids)} tokens; "
                f"between 1 and {self.context_length - 1} fit into the context"
            )
        if sampling.max_tokens < 1:
            raise EngineError(f"max_tokens must be at least 1, got {sampling.max_tokens}")
        try:
            self._check_ids(prompt_ids)
        except ConfigError as error:
            raise EngineError(*error.args) from None
        self._check_adapter(adapter)

    def _check_ids(self, ids: Sequence[int]) -> None:
        invalid = [token for token in ids if not 0 <= token < self._facts.vocabulary]
        if invalid:
            raise ConfigError(
                f"token {invalid[0]} is outside the vocabulary of {self._facts.vocabulary}"
            )

    def _check_adapter(self, adapter: str) -> None:
        if adapter not in self.adapters:
            raise EngineError(unknown("adapter", adapter, self.adapters, known_as="loaded"))


def _clear_frames(error: BaseException | None) -> None:
    """Free the tensors of a failed step: the frames of its error refer to them while the error
    exists.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


async def _drained(answers: AsyncGenerator[object, None]) -> None:
    async with aclosing(answers):
        async for _ in answers:
            pass
