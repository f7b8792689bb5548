"""The backend `tinker`: models trained and sampled by the service, served on the loopback."""

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
    TrajectoryGroup,
)
from art_core.endpoint.host import EndpointHost
from art_core.rl.config import cap, check_options, count, optional, price
from art_tinker.clients import SeatOptions
from art_tinker.costs import Meter
from art_tinker.sdk import Connection, tinker
from art_tinker.seat import Seat, take_seat

if TYPE_CHECKING:
    from art_core import TrainableModel

log = logging.getLogger("art_tinker")
BOOK_TIMEOUT_S = 60.0
"""How long the end of serving waits for what was asked of the service, to book it."""


@attrs.define(eq=False)
class _Served:
    """A model's seat, and the endpoint that serves it."""

    seat: Seat
    host: EndpointHost

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(
            base_url=self.host.base_url,
            api_key=self.host.api_key,
            model_name=self.seat.model.name,
        )


class TinkerBackend:
    """Trains LoRA adapters at Tinker and samples from them (see `art_core.backends.Backend`).

    - `base_url`, `api_key`: of the service; default `TINKER_BASE_URL` and `TINKER_API_KEY`, as the
      SDK reads them.
    - `lora_rank`, `seed`: of the adapter.
    - `context_length`: of the served models; by default what the service says.
    - `tokenizer`: a directory or hub id; by default the one that the service names.
    - `cached_prefill_per_million`: US dollars for a million prompt tokens that the service had in
      its cache; by default what the price list says.
    - `connect_timeout_s`: how long the service may take to answer at all; `register_timeout_s`:
      to load a model; `step_timeout_s`: for a training step; `request_timeout_s`: for one request
      to the endpoint.

    Raises ConfigError for an option that can't be, or when the SDK is not installed.
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
        self._options = SeatOptions(
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
        # A model is begun or left, one after the other: each would write the other's steps.
        self._turns: defaultdict[Path, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def register(self, model: TrainableModel) -> Endpoint:
        """Begin a session for the model at its last saved state, or fresh, and serve it.

        A model that is registered already keeps its endpoint. Raises ConfigError for a base model
        that the service has not or a key that it does not take, BackendError when it does not
        answer.
        """
        key = self._served.key(model)
        async with self._turns[key]:
            self._served.check_open()
            if key not in self._served:
                self._served[key] = await self._serve(model)
                self._served.check_open()
            served = self._served[key]
        if served.seat.model is not model:
            self._hand_over(served.seat, model)
        return served.endpoint

    async def unregister(self, model: TrainableModel) -> None:
        """Stop serving the model, after the step under way; its states stay at the service.

        Requests under way are cut off, and booked when the service is done with them.
        """
        await self._left(self._served.key(model))

    async def train(
        self, model: TrainableModel, groups: Sequence[TrajectoryGroup], **options: Any
    ) -> TrainResult:
        """Run one step (`TrainConfig.of(**options)`), save its state and serve its weights.

        The tokens of the step are charged also when it fails, unless the service refused it. After
        a failure the next step starts from the newest state that was saved.
        """
        seat = self._served.of(model).seat
        return await seat.train(groups, TrainConfig.of(model.plugins.losses(), **options))

    async def step(self, model: TrainableModel) -> int:
        """Return the step of the newest weights."""
        return self._served.of(model).seat.step

    async def checkpoints(self, model: TrainableModel) -> Sequence[Checkpoint]:
        """Return the steps whose states the service keeps, oldest first."""
        store = self._served.of(model).seat.store
        return [Checkpoint(step=step, path=store.path(step)) for step in store.steps()]

    async def delete_checkpoints(self, model: TrainableModel, keep: Collection[int]) -> list[int]:
        """Delete all states but those steps' and the newest, at the service and here; return the
        deleted steps.
        """
        return await self._served.of(model).seat.delete(list(keep))

    async def close(self) -> None:
        """Finish the steps under way, stop serving, end the sessions; again, it does nothing."""
        self._served.closed = True
        for key in list(self._turns):
            await self._left(key)

    async def _serve(self, model: TrainableModel) -> _Served:
        seat = await take_seat(model, self._options)
        host = EndpointHost(seat.samplers, request_timeout_s=self._options.request_timeout_s)
        served = _Served(seat, host)
        starting = asyncio.ensure_future(asyncio.to_thread(host.start))
        try:
            await asyncio.shield(starting)
        except BaseException:
            await asyncio.wait({starting})
            await self._leave(served)
            raise
        seat.meter.check_price()
        log.info(
            "model %r on Tinker, %s, LoRA rank %d, %s; served at %s",
            model.name,
            model.base_model,
            self._options.lora_rank,
            f"resumed at step {seat.step}" if seat.step else "starting fresh at step 0",
            host.base_url,
        )
        return served

    async def _left(self, key: Path) -> None:
        async with self._turns[key]:
            served = self._served.pop(key, None)
            if served is not None:
                await self._leave(served)

    async def _leave(self, served: _Served) -> None:
        samplers = served.seat.samplers
        await served.seat.idle()
        try:
            await asyncio.to_thread(served.host.stop)
            late = await samplers.booked(BOOK_TIMEOUT_S)
            if late:
                log.warning(
                    "%d requests to %r were still sampled after %g s; no row has what they cost",
                    *(late, samplers.name, BOOK_TIMEOUT_S),
                )
        finally:
            for service in samplers.services.values():
                await self._options.connection.end(service)

    def _hand_over(self, seat: Seat, model: TrainableModel) -> None:
        """From now on costs are those of a run that was opened again."""
        seat.model = model
        seat.meter = seat.samplers.meter = Meter(
            model=model, cached_per_million=self._options.cached_prefill_per_million
        )
