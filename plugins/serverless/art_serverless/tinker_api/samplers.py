"""Samplers: weights that clients sample from. The newest used stay in the engines' memory."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs

from art_core.endpoint.errors import RequestError

BASE = "base"
"""The name by which an engine serves the base model."""


@attrs.frozen(kw_only=True, eq=False)
class Sampler:
    """Weights to sample from: the base model's, or those saved in `place`. Its requests' time is
    charged to `owner`; `adapter` is the weights' name in the engine.
    """

    id: str
    session_id: str
    base: Any
    owner: str
    adapter: str = BASE
    place: Path | None = None
    path: str | None = None

    def about(self) -> dict[str, Any]:
        """Return the sampler as the SDK describes it."""
        return {"sampler_id": self.id, "base_model": self.base.name, "model_path": self.path}


@attrs.define(eq=False)
class _Loaded:
    base: Any
    users: int = 0


class Samplers:
    """The samplers of all sessions. At most `limit` adapters stay loaded beside those in use; the
    others are read again, by `read` on the training thread.
    """

    def __init__(
        self,
        limit: int,
        read: Callable[[Sampler], Awaitable[Mapping[str, Any]]],
    ) -> None:
        self._limit, self._read = limit, read
        self._all: dict[str, Sampler] = {}
        self._loaded: OrderedDict[str, _Loaded] = OrderedDict()
        self._loading = asyncio.Lock()

    def add(self, sampler: Sampler, serving: Mapping[str, Any] | None = None) -> None:
        """Add a sampler, with its merged weights if they are known."""
        self._all[sampler.id] = sampler
        if serving is not None:
            self._load(sampler, serving)

    def get(self, sampler_id: str) -> Sampler:
        """Return a sampler; RequestError (404) for one whose session has ended."""
        if sampler_id not in self._all:
            raise RequestError(
                404,
                f"no sampler {sampler_id!r:.200}: its session has ended, newer ones took its "
                "place, or the server was restarted; create a sampling client from saved weights",
            )
        return self._all[sampler_id]

    def remove(self, sampler_id: str) -> None:
        """Remove a sampler; its weights leave memory with others that are not used."""
        self._all.pop(sampler_id, None)
        wanted = {sampler.adapter for sampler in self._all.values()}
        self._evict([name for name in self._loaded if name not in wanted])

    @asynccontextmanager
    async def using(self, sampler: Sampler) -> AsyncIterator[str]:
        """Keep a sampler's weights in memory inside the block; yield their name in the engine."""
        if sampler.place is None:
            yield BASE
            return
        async with self._loading:
            if sampler.adapter not in self._loaded:
                self._load(sampler, await self._read(sampler))
            loaded = self._loaded[sampler.adapter]
            loaded.users += 1
            self._loaded.move_to_end(sampler.adapter)
        try:
            yield sampler.adapter
        finally:
            loaded.users -= 1

    def _load(self, sampler: Sampler, serving: Mapping[str, Any]) -> None:
        sampler.base.engine.load(sampler.adapter, serving)
        self._loaded[sampler.adapter] = _Loaded(sampler.base)
        self._evict(list(self._loaded)[: -self._limit])

    def _evict(self, names: list[str]) -> None:
        for name in names:
            if not self._loaded[name].users:
                self._loaded.pop(name).base.engine.unload(name)
