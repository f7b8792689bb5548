"""The backend `tinker`: the service trains and samples, a loopback endpoint serves."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from art_core import (
    Checkpoint,
    Endpoint,
    RegisteredModels,
    TrainConfig,
    TrainResult,
    Trajectory,
    TrajectoryGroup,
)
from art_core.endpoint.host import EndpointHost
from art_core.rl.config import cap, check_options, count, optional, price
from art_core.rl.sft import ExampleSize, example_size, sft_config
from art_tinker.costs import TinkerMeter
from art_tinker.remote_model import RemoteModel, RemoteOptions, open_remote
from art_tinker.sdk import Connection, tinker

if TYPE_CHECKING:
    from art_core import TrainableModel

log = logging.getLogger("art_tinker")
BOOK_TIMEOUT_S = 60.0
"""Seconds that the end of serving waits for running requests, to book them."""


@attrs.define(eq=False)
class _Served:
    """A model at the service, and the endpoint that serves it."""

    remote: RemoteModel
    host: EndpointHost

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(
            base_url=self.host.base_url,
            api_key=self.host.api_key,
            model_name=self.remote.model.name,
        )


class TinkerBackend:
    """Trains LoRA adapters at Tinker and samples from them (see `art_core.backends.Backend`).

    - `base_url`, `api_key`: of the service; default `TINKER_BASE_URL` and `TINKER_API_KEY`, as the
      SDK reads them.
    - `lora_rank`, `seed`: of the adapter.
    - `context_length`: of the served models; by default the service's.
    - `tokenizer`: a directory or hub id; by default the one that the service names.
    - `cached_prefill_per_million`: US dollars for a million prompt tokens from the service's cache;
      by default the price list's.
    - `connect_timeout_s`: of the service's first answer; `register_timeout_s`: of loading a model;
      `step_timeout_s`: of a training step; `request_timeout_s`: of one request to the endpoint.

    Raises ConfigError for an invalid option, or if the SDK is not installed.
    """

    def __init__(
        self,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        lora_rank: int = 32,
        seed: int | None = None,
        context_length: int | None = None,
        tokenizer: str | None = None,
        cached_prefill_per_million: float | None = None,
        connect_timeout_s: float = 30.0,
        register_timeout_s: float = 600.0,
        step_timeout_s: float = 3600.0,
        request_timeout_s: float = 600.0,
    ) -> None:
        check_options(count, lora_rank=lora_rank)
        check_options(optional(count), context_length=context_length)
        check_options(optional(price), cached_prefill_per_million=cached_prefill_per_million)
        check_options(
            cap,
            connect_timeout_s=connect_timeout_s,
            register_timeout_s=register_timeout_s,
            step_timeout_s=step_timeout_s,
            request_timeout_s=request_timeout_s,
        )
        tinker()
        self._options = RemoteOptions(
            connection=Connection(
                base_url=base_url, api_key=api_key, connect_timeout_s=connect_timeout_s
            ),
            lora_rank=lora_rank,
            seed=seed,
            context_length=context_length,
            tokenizer=tokenizer,
            cached_prefill_per_million=cached_prefill_per_million,
            register_timeout_s=register_timeout_s,
            step_timeout_s=step_timeout_s,
            request_timeout_s=request_timeout_s,
        )
        self._served: RegisteredModels[_Served] = RegisteredModels("tinker")
        # Opening and closing a model exclude each other: two sessions would mix up its steps.
        self._locks: defaultdict[Path, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def register(self, model: TrainableModel) -> Endpoint:
        """Begin a session for the model at its last saved state, or fresh, and serve it.

        A registered model keeps its endpoint. Raises ConfigError for a base model that the service
        does not have and for a key that it does not accept, BackendError if it does not answer.
        """
        key = self._served.key(model)
        async with self._locks[key]:
            self._served.check_open()
            if key not in self._served:
                self._served[key] = await self._serve(model)
                self._served.check_open()
            served = self._served[key]
        if served.remote.model is not model:
            self._hand_over(served.remote, model)
        return served.endpoint

    async def unregister(self, model: TrainableModel) -> None:
        """Stop serving the model, after its running step; its states stay at the service.

        Running requests are cut off, and booked when the service has finished them.
        """
        await self._unserve(self._served.key(model))

    async def train(
        self, model: TrainableModel, groups: Sequence[TrajectoryGroup], **options: Any
    ) -> TrainResult:
        """Run one step (`TrainConfig.of(**options)`), save its state and serve its weights.

        A failed step is charged too, unless the service rejected it. The step after it starts from
        the newest saved state.
        """
        remote = self._served.of(model).remote
        offered = model.plugins
        config = TrainConfig.of(offered.losses(), offered.advantages(), **options)
        return await remote.train(groups, config)

    async def train_sft(
        self, model: TrainableModel, batches: Sequence[Sequence[Trajectory]], **options: Any
    ) -> TrainResult:
        """Run one step of supervised fine-tuning (`sft_config(**options)`) by the service's cross
        entropy; all else as `train` does.
        """
        return await self._served.of(model).remote.train_sft(batches, sft_config(**options))

    async def check_sft(
        self, model: TrainableModel, examples: Sequence[Trajectory]
    ) -> Sequence[ExampleSize]:
        """Return the size of each example, or why it can't be trained."""
        turns = self._served.of(model).remote.turns
        return await asyncio.to_thread(lambda: [example_size(each, turns) for each in examples])

    async def step(self, model: TrainableModel) -> int:
        """Return the step of the newest weights."""
        return self._served.of(model).remote.step

    async def checkpoints(self, model: TrainableModel) -> Sequence[Checkpoint]:
        """Return the steps whose states are at the service, oldest first."""
        store = self._served.of(model).remote.store
        return [Checkpoint(step=step, path=store.path(step)) for step in store.steps()]

    async def delete_checkpoints(self, model: TrainableModel, keep: Collection[int]) -> list[int]:
        """Delete all states but those steps' and the newest, at the service and here; return the
        deleted steps.
        """
        return await self._served.of(model).remote.delete(list(keep))

    async def close(self) -> None:
        """Finish the running steps, stop serving, end the sessions. A second call does nothing."""
        self._served.closed = True
        for key in list(self._locks):
            await self._unserve(key)

    async def _serve(self, model: TrainableModel) -> _Served:
        remote = await open_remote(model, self._options)
        host = EndpointHost(remote.samplers, request_timeout_s=self._options.request_timeout_s)
        served = _Served(remote, host)
        starting = asyncio.ensure_future(asyncio.to_thread(host.start))
        try:
            await asyncio.shield(starting)
        except BaseException:
            await asyncio.wait({starting})
            await self._close(served)
            raise
        remote.meter.check_price()
        log.info(
            "model %r on Tinker, %s, LoRA rank %d, %s; served at %s",
            model.name,
            model.base_model,
            self._options.lora_rank,
            f"resumed at step {remote.step}" if remote.step else "starting fresh at step 0",
            host.base_url,
        )
        return served

    async def _unserve(self, key: Path) -> None:
        async with self._locks[key]:
            served = self._served.pop(key, None)
            if served is not None:
                await self._close(served)

    async def _close(self, served: _Served) -> None:
        samplers = served.remote.samplers
        await served.remote.idle()
        try:
            await asyncio.to_thread(served.host.stop)
            late = await samplers.booked(BOOK_TIMEOUT_S)
            if late:
                log.warning(
                    "%d requests to %r were still running after %g s; no row has their costs",
                    *(late, samplers.name, BOOK_TIMEOUT_S),
                )
        finally:
            for service in samplers.services.values():
                await self._options.connection.end(service)

    def _hand_over(self, remote: RemoteModel, model: TrainableModel) -> None:
        """Add costs from now on to another object of the model: its run was opened again."""
        remote.model = model
        remote.meter = remote.samplers.meter = TinkerMeter(
            model=model, cached_per_million=self._options.cached_prefill_per_million
        )
