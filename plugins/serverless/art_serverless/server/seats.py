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
from art_serverless.server.errors import RefusedError
from art_serverless.server.names import check_no_path
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
    _removed: set[str] = attrs.field(factory=set)

    @property
    def awake(self) -> int:
        """How many models are loaded."""
        return len(self._seats)

    @asynccontextmanager
    async def using(self, stored: StoredModel) -> AsyncIterator[TrainableModel]:
        """Hold a model awake inside the block; it is loaded first when it sleeps.

        Raises ConfigError for a base model that the backend does not have, RefusedError 404 for a
        model that was removed meanwhile.
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
            if stored.id in self._removed:
                raise RefusedError(404, f"{stored.address.uri} was deleted")
            if stored.id not in self._seats:
                if stored.base_model not in self.base_models:
                    check_no_path(stored.base_model)
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
        """Unload models that nobody used for so long; return their ids. One whose newest weights
        are in no checkpoint stays: they would be lost.
        """
        asleep = []
        for model_id, seat in list(self._seats.items()):
            async with self._locks[model_id]:
                idle = seat.users == 0 and time.monotonic() - seat.last_used >= idle_s
                if idle and model_id in self._seats and await _is_saved(seat.model):
                    await self._unload(model_id)
                    asleep.append(model_id)
        return asleep

    async def _unload(self, model_id: str) -> None:
        seat = self._seats.pop(model_id, None)
        if seat is None:
            return
        try:
            await self.backend.unregister(seat.model)
        finally:
            await seat.model.close()
        log.info("%s sleeps", seat.model.name)

    async def remove(self, stored: StoredModel) -> None:
        """Unload a model for good and delete its files; RefusedError 409 while somebody uses it."""
        async with self._locks.setdefault(stored.id, asyncio.Lock()):
            seat = self._seats.get(stored.id)
            if seat is not None and seat.users:
                raise RefusedError(409, f"{stored.address.uri} is in use; delete it afterwards")
            self._removed.add(stored.id)
            await self._unload(stored.id)
            directory = self._model(stored).run_dir
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)

    async def close(self) -> None:
        """Close the backend and the logs of all models."""
        await self.backend.close()
        for seat in self._seats.values():
            await seat.model.close()
        self._seats.clear()


async def _is_saved(model: TrainableModel) -> bool:
    step = await model.get_step()
    return step == 0 or step in {checkpoint.step for checkpoint in await model.checkpoints()}
