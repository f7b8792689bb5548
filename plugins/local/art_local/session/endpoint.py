"""A model's endpoint: the names that it answers to, and the steps that its engine has loaded."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Sequence

import attrs

from art_core.endpoint.engine import ChatTokenizer, Engine, Sampling, ServedModel, Token
from art_local.engine.protocol import BASE, LocalEngine, StepWeights


class Lease:
    """Keeps a step's adapter loaded as long as this object is referenced."""

    __slots__ = ("__weakref__", "adapter")

    def __init__(self, adapter: str) -> None:
        self.adapter = adapter


class LeasedEngine:
    """An engine with the lease of the adapter that its requests name.

    The endpoint references it, and so the lease, from a request's arrival to its last token.
    """

    def __init__(self, engine: Engine, lease: Lease) -> None:
        self._engine, self._lease = engine, lease
        self.context_length = engine.context_length

    def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, adapter: str
    ) -> AsyncGenerator[Token, None]:
        """Sample one sequence; see `art_core.endpoint.engine.Engine`."""
        return self._engine.generate(prompt_ids, sampling, adapter)

    async def close(self) -> None:
        """Do nothing: the owner of the engine closes it."""


@attrs.define(eq=False)
class _Loaded:
    adapter: str
    leases: weakref.WeakSet[Lease] = attrs.field(factory=weakref.WeakSet)


class LoadedSteps:
    """The steps that an engine has loaded: at most `limit`, the least recently used are unloaded.

    The newest step and leased steps stay loaded, also beyond the limit. Thread-safe.
    """

    def __init__(self, limit: int, unload: Callable[[str], None]) -> None:
        self._limit, self._unload = limit, unload
        self._lock = threading.Lock()
        self._steps: OrderedDict[int, _Loaded] = OrderedDict()

    def lease(self, step: int) -> Lease | None:
        """Lease a loaded step, now the most recently used; None if it is not loaded."""
        with self._lock:
            found = self._steps.get(step)
            if found is None:
                return None
            self._steps.move_to_end(step)
            lease = Lease(found.adapter)
            found.leases.add(lease)
            return lease

    def add(self, step: int, adapter: str, newest: int) -> None:
        """Add a step that was loaded, and unload steps beyond the limit."""
        with self._lock:
            self._steps[step] = self._steps.get(step) or _Loaded(adapter)
            self._steps.move_to_end(step)
            removed = self._pop_excess(protected={step, newest})
        for adapter_name in removed:
            self._unload(adapter_name)

    def steps(self) -> list[int]:
        """Return the loaded steps."""
        with self._lock:
            return list(self._steps)

    def clear(self) -> None:
        """Unload all steps, leased or not."""
        with self._lock:
            removed = [loaded.adapter for loaded in self._steps.values()]
            self._steps.clear()
        for adapter in removed:
            self._unload(adapter)

    def _pop_excess(self, protected: set[int]) -> list[str]:
        free = [
            step
            for step, loaded in self._steps.items()
            if step not in protected and not loaded.leases
        ]
        excess = max(len(self._steps) - self._limit, 0)
        return [self._steps.pop(step).adapter for step in free[:excess]]


class ServedSteps:
    """The steps of one model that its engine can serve.

    - `adapter_name`: of the model's adapters in the engine; step 3 is `<adapter_name>@3`.
    - `limit`: steps that stay loaded.
    - `stored()` returns the steps with a checkpoint; `read(step)` their weights.
    """

    def __init__(
        self,
        engine: LocalEngine,
        adapter_name: str,
        limit: int,
        *,
        stored: Callable[[], Sequence[int]],
        read: Callable[[int], StepWeights],
    ) -> None:
        self.engine = engine
        self.newest = 0
        self._adapter_name, self._stored, self._read = adapter_name, stored, read
        self._loading = threading.RLock()
        self._loaded = LoadedSteps(limit, engine.unload)

    def adapter(self, step: int) -> str:
        """Return the engine's name for a step's weights."""
        return f"{self._adapter_name}@{step}" if step else BASE

    def publish(self, step: int, weights: StepWeights) -> None:
        """Serve new weights; from then on the model's bare name means this step."""
        self._load(step, weights, newest=step)
        self.newest = step

    def loaded_lease(self, step: int) -> Lease | None:
        """Lease a loaded step; None if it has to be loaded first."""
        return Lease(BASE) if step == 0 else self._loaded.lease(step)

    def lease(self, step: int) -> Lease:
        """Lease a step, loading it from its checkpoint if needed.

        Raises KeyError for a step that is neither loaded nor stored.
        """
        with self._loading:
            while (lease := self.loaded_lease(step)) is None:
                if step not in self._stored():
                    raise KeyError(self.adapter(step))
                self._load(step, self._read(step), newest=self.newest)
        return lease

    def available(self) -> list[int]:
        """Return the steps that can be requested by name."""
        return sorted({self.newest, *self._loaded.steps(), *self._stored()})

    def unload(self) -> None:
        """Unload all steps of this model."""
        self._loaded.clear()

    def _load(self, step: int, weights: StepWeights, newest: int) -> None:
        # locked until excess steps are unloaded: another thread may request one at that moment
        with self._loading:
            self.engine.publish(self.adapter(step), weights)
            self._loaded.add(step, self.adapter(step), newest)


@attrs.frozen
class ServedNames:
    """Resolves the model names of requests: `name` is the newest step when the request arrives,
    `name@step` that step, the base model's name the untrained weights. A request keeps the weights
    that it started with.
    """

    name: str
    base_model: str
    steps: ServedSteps
    tokenizer: ChatTokenizer

    def names(self) -> Sequence[str]:
        """Return the names to list."""
        steps = sorted({0, *self.steps.available()}, reverse=True)
        return [self.name, *(f"{self.name}@{step}" for step in steps), self.base_model]

    async def resolve(self, name: str) -> ServedModel:
        """Return the model of a name; older steps are loaded first. KeyError if it is unknown."""
        if name == self.base_model and name != self.name:
            return self._served(await self._lease(0), name, None)
        step = self._step(name)
        return self._served(await self._lease(step), f"{self.name}@{step}", step)

    async def _lease(self, step: int) -> Lease:
        lease = self.steps.loaded_lease(step)
        return await asyncio.to_thread(self.steps.lease, step) if lease is None else lease

    def _step(self, name: str) -> int:
        if name == self.name:
            return self.steps.newest
        stem, at, step = name.rpartition("@")
        if not at or stem != self.name or not step.isdecimal():
            raise KeyError(name)
        return int(step)

    def _served(self, lease: Lease, name: str, step: int | None) -> ServedModel:
        return ServedModel(
            engine=LeasedEngine(self.steps.engine, lease),
            tokenizer=self.tokenizer,
            adapter=lease.adapter,
            name=name,
            policy_version=step,
        )
