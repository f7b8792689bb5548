"""The loaded models: each is loaded on its first request, and unloaded when it is idle."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import attrs

from art_core import Backend, Budget, TrainableModel, keep_all
from art_core.endpoint.errors import RequestError
from art_serverless.server.names import check_no_path
from art_serverless.server.store import StoredModel

log = logging.getLogger("art_serverless")


@attrs.define(kw_only=True, eq=False)
class ModelSlot:
    """A loaded model; it stays loaded while it has `users`, requests and jobs."""

    model: TrainableModel
    users: int = 0
    last_used: float = attrs.field(factory=time.monotonic)


@attrs.define(kw_only=True, eq=False)
class ModelSlots:
    """The models of the server, each in `<directory>/<entity>/<project>/models/<name>`.

    `base_models` are the paths of the base models that clients may name. If it is empty, the
    backend finds base models by name. `budgets` are those of the models' owners.
    """

    backend: Backend
    directory: Path
    base_models: Mapping[str, str]
    budgets: Mapping[str, Budget] = attrs.field(factory=dict)
    _slots: dict[str, ModelSlot] = attrs.field(factory=dict)
    _locks: dict[str, asyncio.Lock] = attrs.field(factory=dict)
    _removed: set[str] = attrs.field(factory=set)

    @property
    def awake(self) -> int:
        """The number of loaded models."""
        return len(self._slots)

    @asynccontextmanager
    async def using(self, stored: StoredModel) -> AsyncIterator[TrainableModel]:
        """Keep a model loaded inside the block; load it first if necessary.

        Raises ConfigError for a base model that the backend does not have, RequestError (404) for a
        model that was removed meanwhile.
        """
        slot = await self._slot(stored)
        slot.users += 1
        try:
            yield slot.model
        finally:
            slot.users -= 1
            slot.last_used = time.monotonic()

    async def _slot(self, stored: StoredModel) -> ModelSlot:
        async with self._locks.setdefault(stored.id, asyncio.Lock()):
            if stored.id in self._removed:
                raise RequestError(404, f"{stored.address.uri} was deleted")
            if stored.id not in self._slots:
                if stored.base_model not in self.base_models:
                    check_no_path(stored.base_model)
                model = self._model(stored)
                try:
                    await model.register(self.backend)
                except BaseException:
                    await model.close(status="failed")
                    raise
                self._slots[stored.id] = ModelSlot(model=model)
                log.info("%s is awake", stored.address.uri)
            return self._slots[stored.id]

    def _model(self, stored: StoredModel) -> TrainableModel:
        return TrainableModel(
            keep_checkpoints=keep_all(),  # the client has the metrics, and deletes
            name=stored.name,
            project=stored.project,
            base_model=self.base_models.get(stored.base_model, stored.base_model),
            base_path=self.directory / stored.entity,
            sinks=[],
            budget=self.budgets.get(stored.owner),
        )

    async def put_to_sleep(self, idle_s: float) -> list[str]:
        """Unload the models that were not used for `idle_s`; return their ids.

        A model whose newest weights are not in a checkpoint stays, since they would be lost.
        """
        asleep = []
        for model_id, slot in list(self._slots.items()):
            async with self._locks[model_id]:
                idle = slot.users == 0 and time.monotonic() - slot.last_used >= idle_s
                if idle and model_id in self._slots and await _is_saved(slot.model):
                    await self._unload(model_id)
                    asleep.append(model_id)
        return asleep

    async def _unload(self, model_id: str) -> None:
        slot = self._slots.pop(model_id, None)
        if slot is None:
            return
        try:
            await self.backend.unregister(slot.model)
        finally:
            await slot.model.close()
        log.info("%s sleeps", slot.model.name)

    async def remove(self, stored: StoredModel) -> None:
        """Unload a model for good and delete its files; RequestError (409) if it is in use."""
        async with self._locks.setdefault(stored.id, asyncio.Lock()):
            slot = self._slots.get(stored.id)
            if slot is not None and slot.users:
                raise RequestError(409, f"{stored.address.uri} is in use; delete it afterwards")
            self._removed.add(stored.id)
            await self._unload(stored.id)
            directory = self._model(stored).run_dir
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)

    async def close(self) -> None:
        """Close the backend and the logs of all models."""
        await self.backend.close()
        for slot in self._slots.values():
            await slot.model.close()
        self._slots.clear()


async def _is_saved(model: TrainableModel) -> bool:
    step = await model.get_step()
    return step == 0 or step in {checkpoint.step for checkpoint in await model.checkpoints()}
