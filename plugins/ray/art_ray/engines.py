"""The engines, as the driver sees them: one engine whose requests go to replicas."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import ray
from ray.exceptions import ActorDiedError, RayError

from art_core import ArtError, EngineError
from art_core.endpoint.engine import Sampling, Token
from art_local.engine.protocol import BASE, StepWeights
from art_ray.actors import LOST, RETRY_S, first_line, plain, result
from art_ray.engine_worker import AdapterMissingError, EngineFacts
from art_ray.files import read_files
from art_ray.prefixes import PrefixRouter

if TYPE_CHECKING:
    from art_local.images.reader import ImageReader

log = logging.getLogger("art_ray")
LOAD_TIMEOUT_S = 300.0


class RayEngine:
    """Samples from replicas (see `art_local.engine.protocol.LocalEngine`).

    - `replicas`: handles of `EngineWorker` actors, all of the same model, and their `facts`.
    - `timeout_s`: how long a request may wait for a replica that comes back.

    Weights are put into the object store once for all replicas. They stay there while they are
    served, so that a replica that was started again gets those of the next request.
    """

    name = "ray"
    images_refused: str | None = "the backend 'ray' reads text only"

    def __init__(
        self, replicas: Sequence[Any], facts: Sequence[EngineFacts], timeout_s: float
    ) -> None:
        self.context_length = facts[0].context_length
        self.is_rounded = facts[0].is_rounded
        self.places = [each.place for each in facts]
        self._restarts = 0
        self._replicas, self._timeout_s = list(replicas), timeout_s
        self._router = PrefixRouter(len(self._replicas))
        self._adapters: dict[str, Any] = {}
        self._lost: dict[int, float] = {}
        self._dead: set[int] = set()
        self._closed = False

    def read_images(self, reader: ImageReader, /) -> None:
        """Do nothing: `images_refused` is set."""

    def publish(self, adapter: str, weights: StepWeights) -> None:
        """Give weights to all replicas. One that is lost gets them with its next request."""
        with tempfile.TemporaryDirectory(prefix="art-ray-") as place:
            weights.write(Path(place))
            files = read_files(Path(place))
        reference = ray.put(files)
        self._adapters = {**self._adapters, adapter: reference}
        calls = [
            (number, replica.load.remote(adapter, reference))
            for number, replica in enumerate(self._replicas)
            if number not in self._dead
        ]
        for number, call in calls:
            try:
                self.places[number] = result(call, LOAD_TIMEOUT_S)
                self._lost.pop(number, None)
            except LOST as error:
                self._note_lost(number, error)
        self.check()

    def unload(self, adapter: str) -> None:
        """Stop serving an adapter; running requests finish."""
        self._adapters = {name: ref for name, ref in self._adapters.items() if name != adapter}
        for number, replica in enumerate(self._replicas):
            if number not in self._dead:
                replica.unload.remote(adapter)

    def asleep(self) -> AbstractContextManager[None]:
        """Do nothing: the trainer has a device of its own."""
        return nullcontext()

    def check(self) -> None:
        """Raise EngineError if no replica is left."""
        if len(self._dead) == len(self._replicas):
            raise EngineError(
                "all replicas of the engine are lost, and Ray does not start them again",
                "Register the model again, with a larger max_restarts in engines.",
            )

    def step_metrics(self) -> dict[str, float]:
        """Return the replicas' measurements since the last call, their means."""
        found: dict[str, list[float]] = {}
        asked = sorted(set(range(len(self._replicas))) - self._dead - self._lost.keys())
        for call in [self._replicas[number].step_metrics.remote() for number in asked]:
            try:
                measured = result(call, LOAD_TIMEOUT_S)
            except (*LOST, ArtError):
                continue
            for name, value in measured.items():
                found.setdefault(name, []).append(value)
        restarts, self._restarts = self._restarts, 0
        means = {name: sum(values) / len(values) for name, values in found.items()}
        return means | {"throughput/engine_restarts": float(restarts)}

    async def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        adapter: str = BASE,
        images: Sequence[str] = (),
    ) -> AsyncGenerator[Token, None]:
        """Sample one sequence. If its replica is lost, another one goes on from its last token."""
        del images
        ids, taken = tuple(prompt_ids), list[int]()
        deadline = time.monotonic() + self._timeout_s
        while True:
            rest = attrs.evolve(sampling, max_tokens=sampling.max_tokens - len(taken))
            try:
                with self._replica(ids) as replica:
                    asked = _stream if sampling.stream else _whole
                    async for token in asked(replica, [*ids, *taken], rest, adapter):
                        taken.append(token.id)
                        yield token
                    return
            except _NotLoadedError as missing:
                await self._load(missing.replica, adapter)
            except _ReplicaLostError as error:
                if taken and (sampling.grammar is not None or sampling.seed is not None):
                    kind = "a seed" if sampling.grammar is None else "a grammar"
                    raise EngineError(
                        f"a replica of the engine was lost in the middle of an answer with {kind}",
                        "Ask again.",
                    ) from error
                await self._wait(deadline, error)

    async def score(self, ids: Sequence[int], adapter: str = BASE) -> Sequence[float]:
        """Return the log-probs of a text."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                with self._replica(ids) as replica:
                    scores: Sequence[float] = await replica.score.remote(list(ids), adapter)
                    return scores
            except _NotLoadedError as missing:
                await self._load(missing.replica, adapter)
            except _ReplicaLostError as error:
                await self._wait(deadline, error)

    async def close(self) -> None:
        """End the replicas and their requests; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        for replica in self._replicas:
            ray.kill(replica)
        self._adapters = {}

    @contextmanager
    def _replica(self, ids: Sequence[int]) -> Iterator[Any]:
        """Yield the replica of a prompt; its errors become errors of the engine."""
        self._check_open()
        now = time.monotonic()
        tried = self._dead | {number for number, until in self._lost.items() if until > now}
        with self._router.routed(ids, tried) as number:
            replica = self._replicas[number]
            try:
                yield replica
                self._lost.pop(number, None)
            except LOST as error:
                if not self._closed:
                    self._note_lost(number, error)
                raise _ReplicaLostError(first_line(error)) from error
            except RayError as error:
                cause = plain(error)
                if isinstance(cause, AdapterMissingError):
                    raise _NotLoadedError(replica) from None
                if isinstance(cause, ArtError):
                    raise cause from None
                raise EngineError(f"the engine failed: {first_line(cause)}") from error

    async def _load(self, replica: Any, adapter: str) -> None:
        """Give an adapter to a replica that was started again."""
        reference = self._adapters.get(adapter)
        if reference is None:
            raise EngineError(f"the weights {adapter!r} are not served any more")
        try:
            await replica.load.remote(adapter, reference)
        except LOST:
            return  # the next request finds out
        except RayError as error:
            raise EngineError(f"the weights were not loaded: {first_line(plain(error))}") from error

    async def _wait(self, deadline: float, error: Exception) -> None:
        """Wait before another replica is asked; EngineError if it is too late."""
        self._check_open()
        if time.monotonic() > deadline:
            raise EngineError(
                f"no replica of the engine came back within {self._timeout_s:g} s: {error}"
            ) from error
        await asyncio.sleep(RETRY_S)

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("the engine is closed")
        self.check()

    def _note_lost(self, number: int, error: Exception) -> None:
        if number not in self._lost and number not in self._dead:
            log.warning("replica %d of the engine is lost: %s", number, first_line(error))
            self._restarts += 1
        if isinstance(error, ActorDiedError):
            self._dead.add(number)
        # it is asked again after a while, and answers once Ray has started it
        self._lost[number] = time.monotonic() + 4 * RETRY_S


async def _whole(
    replica: Any, ids: Sequence[int], sampling: Sampling, adapter: str
) -> AsyncGenerator[Token, None]:
    """Yield the tokens of a sequence at its end; one message for all of them."""
    reference = replica.sample.remote(ids, sampling, adapter)
    try:
        tokens = await reference
    except asyncio.CancelledError:
        ray.cancel(reference)
        raise
    for token in tokens:
        yield token


async def _stream(
    replica: Any, ids: Sequence[int], sampling: Sampling, adapter: str
) -> AsyncGenerator[Token, None]:
    """Yield the tokens of a sequence as they come."""
    method = replica.stream.options(num_returns="streaming")
    references = method.remote(ids, sampling, adapter)
    ended = False
    try:
        async for reference in references:
            token = await reference
            ended = token.finish is not None
            yield token
    finally:
        if not ended:
            ray.cancel(references)


class _ReplicaLostError(Exception):
    """The replica of a request was lost."""


class _NotLoadedError(Exception):
    """The replica of a request lacks its weights."""

    def __init__(self, replica: Any) -> None:
        super().__init__(replica)
        self.replica = replica
