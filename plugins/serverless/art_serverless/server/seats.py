"""Models in the backend: loaded when they are asked for, put to sleep when nobody asks."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import attrs

from art_core import Backend, TrainableModel
from art_serverless.server.store import StoredModel

log = logging.getLogger("art_serverless")


@attrs.define(kw_only=True, eq=False)
class Seat:
    """A loaded model; `users` requests and jobs hold it awake."""

    model: TrainableModel
    users: int = 0
    last_used: float = attrs.field(factory=time.monotonic)


@attrs.define(kw_only=True, eq=False)
class Seats:
    """All models of the server, in `<directory>/<entity>/<project>/models/<name>` each.

    `base_models` says where the base models lie that clients may name; empty: the backend knows.
    """

    backend: Backend
    directory: Path
    base_models: Mapping[str, str]
    _seats: dict[str, Seat] = attrs.field(factory=dict)
    _locks: dict[str, asyncio.Lock] = attrs.field(factory=dict)

    @property
    def awake(self) -> int:
        """How many models are loaded."""
        return len(self._seats)

    @asynccontextmanager
    async def using(self, stored: StoredModel) -> AsyncIterator[TrainableModel]:
        """Hold a model awake inside the block; it is loaded first when it sleeps.

        Raises ConfigError for a base model that the backend does not have.
        """
        seat = await self._seat(stored)
        seat.users += 1
        try:
            yield seat.model
        finally:
            seat.users -= 1
            seat.last_used = time.monotonic()

    async def _seat(self, stored: StoredModel) -> Seat:
        async with self._locks.setdefault(stored.id, asyncio.Lock()):
            if stored.id not in self._seats:
                model = self._model(stored)
                try:
                    await model.register(self.backend)
                except BaseException:
                    await model.close(status="failed")
                    raise
                self._seats[stored.id] = Seat(model=model)
                log.info("%s is awake", stored.address.uri)
            return self._seats[stored.id]

    def _model(self, stored: StoredModel) -> TrainableModel:
        return TrainableModel(
            name=stored.name,
            project=stored.project,
            base_model=self.base_models.get(stored.base_model, stored.base_model),
            base_path=self.directory / stored.entity,
            sinks=[],
        )

    async def put_to_sleep(self, idle_s: float) -> list[str]:
        """Unload models that nobody used for so long; return their ids."""
        asleep = []
        for model_id, seat in list(self._seats.items()):
            if seat.users == 0 and time.monotonic() - seat.last_used >= idle_s:
                await self._unload(model_id)
                asleep.append(model_id)
        return asleep

    async def _unload(self, model_id: str) -> None:
        async with self._locks.setdefault(model_id, asyncio.Lock()):
            seat = self._seats.get(model_id)
            if seat is None or seat.users:
                return
            del self._seats[model_id]
            await self.backend.unregister(seat.model)
            await seat.model.close()
            log.info("%s sleeps", seat.model.name)

    async def remove(self, stored: StoredModel) -> None:
        """Unload a model and delete its files."""
        directory = self._model(stored).run_dir
        await self._unload(stored.id)
        self._locks.pop(stored.id, None)
        await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)

    async def close(self) -> None:
        """Close the backend and the logs of all models."""
        await self.backend.close()
        for seat in self._seats.values():
            await seat.model.close()
        self._seats.clear()
