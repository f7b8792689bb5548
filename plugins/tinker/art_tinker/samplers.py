"""The model names of an endpoint, and the sampling client of each."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent import futures
from typing import Any

import attrs

from art_core.endpoint.engine import ChatTokenizer, ServedModel, request_context
from art_tinker.costs import TinkerMeter
from art_tinker.engine import TinkerEngine
from art_tinker.sdk import Connection, settled

CONTEXTS = ("train", "eval")
MAX_CLIENTS = 16
"""Sampling clients that are kept; others are created again on request."""


@attrs.define(kw_only=True, eq=False)
class Samplers:
    """`name` is the newest step when the request arrives, `name@step` that step, the base model's
    name the untrained weights.

    Requests are booked, and their sessions tagged, with the context in their header
    (`X-ART-Context`). Without the header the context is "train" for the plain name, else "eval".
    """

    name: str
    base_model: str
    tokenizer: ChatTokenizer
    context_length: int
    connection: Connection
    timeout_s: float
    meter: TinkerMeter
    metadata: Mapping[str, Mapping[str, str]]
    services: dict[str, Any]
    paths: dict[int, str]
    newest: int
    _unbooked: set[futures.Future[None]] = attrs.field(factory=set, init=False)
    _clients: dict[tuple[str, int], Any] = attrs.field(factory=dict, init=False)
    _pending: dict[tuple[str, int], asyncio.Task[Any]] = attrs.field(factory=dict, init=False)
    _sessions: asyncio.Lock = attrs.field(factory=asyncio.Lock, init=False)

    async def publish(self, step: int, path: str) -> None:
        """Serve a new step; running requests finish on the weights that they began with."""
        self._clients.pop(("eval", step), None)
        await self._create("train", step, path)
        self.paths[step] = path
        self.newest = step

    def remove(self, step: int) -> None:
        """Stop serving a step."""
        self.paths.pop(step, None)
        for context in CONTEXTS:
            self._clients.pop((context, step), None)

    async def booked(self, timeout_s: float) -> int:
        """Wait until all requests are booked; return the number of those that are late."""
        _, late = await asyncio.to_thread(futures.wait, self._unbooked.copy(), timeout_s)
        return len(late)

    def names(self) -> Sequence[str]:
        """Return the names to list."""
        steps = sorted({0, *self.paths}, reverse=True)
        return [self.name, *(f"{self.name}@{step}" for step in steps), self.base_model]

    async def resolve(self, name: str) -> ServedModel:
        """Return the model of a name; KeyError for an unknown name."""
        step = self._step(name)
        context = request_context.get()
        if context not in CONTEXTS:
            context = "train" if name == self.name else "eval"
        client = await self._client(context, step)
        of_base = name == self.base_model and name != self.name
        return ServedModel(
            engine=TinkerEngine(
                client=client,
                connection=self.connection,
                meter=self.meter,
                context=context,
                context_length=self.context_length,
                unbooked=self._unbooked,
            ),
            tokenizer=self.tokenizer,
            adapter=f"step-{step:04d}",
            name=name if of_base else f"{self.name}@{step}",
            policy_version=None if of_base else step,
        )

    def _step(self, name: str) -> int:
        if name == self.name:
            return self.newest
        if name == self.base_model:
            return 0
        stem, at, digits = name.rpartition("@")
        if not at or stem != self.name or not digits.isdecimal():
            raise KeyError(name)
        step = int(digits)
        if step != 0 and step not in self.paths:
            raise KeyError(name)
        return step

    async def _client(self, context: str, step: int) -> Any:
        """Return a sampling client; simultaneous calls for the same one share its creation."""
        key = (context, step)
        if key in self._clients:
            return self._clients[key]
        if key not in self._pending:
            self._pending[key] = asyncio.create_task(
                self._create(context, step, self.paths.get(step))
            )
            self._pending[key].add_done_callback(lambda _: self._pending.pop(key, None))
        return await asyncio.shield(self._pending[key])

    async def _create(self, context: str, step: int, path: str | None) -> Any:
        service = await self._service(context)
        source = {"base_model": self.base_model} if path is None else {"model_path": path}
        client = await self.connection.call(
            lambda: settled(service.create_sampling_client(**source)),
            self.timeout_s,
            f"making a sampling client of {path or self.base_model}",
        )
        self._clients[context, step] = client
        while len(self._clients) > MAX_CLIENTS:
            self._clients.pop(next(iter(self._clients)))
        return client

    async def _service(self, context: str) -> Any:
        """Return the session of a context; the one of "eval" begins with the first request."""
        if context in self.services:
            return self.services[context]
        async with self._sessions:
            if context not in self.services:
                service, _ = await self.connection.open(self.metadata[context])
                self.services[context] = service
        return self.services[context]
