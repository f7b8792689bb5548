"""Which steps an engine holds, and for how long: a step stays while a request may use it."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Sequence

import attrs

from art_core.endpoint.engine import Engine, Sampling, Token


class Lease:
    """A promise that a step's adapter stays loaded while somebody refers to this object."""

    __slots__ = ("__weakref__", "adapter")

    def __init__(self, adapter: str) -> None:
        self.adapter = adapter


class LeasedEngine:
    """An engine together with the lease of the adapter that its requests will name.

    The endpoint holds it from the request's arrival to the last token, and so the lease, too.
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
        """Do nothing: who lends an engine closes it."""


@attrs.define(eq=False)
class _Loaded:
    adapter: str
    leases: weakref.WeakSet[Lease] = attrs.field(factory=weakref.WeakSet)


class LoadedSteps:
    """The steps that an engine has: at most `kept` of them, the least recently used go first.

    The newest step and those that are leased always stay, also beyond `kept`. Any thread may call.
    """

    def __init__(self, kept: int, unload: Callable[[str], None]) -> None:
        self._kept, self._unload = kept, unload
        self._lock = threading.Lock()
        self._steps: OrderedDict[int, _Loaded] = OrderedDict()

    def lease(self, step: int) -> Lease | None:
        """Return a lease of a loaded step, which now is the most recently used; None without."""
        with self._lock:
            found = self._steps.get(step)
            if found is None:
                return None
            self._steps.move_to_end(step)
            lease = Lease(found.adapter)
            found.leases.add(lease)
            return lease

    def add(self, step: int, adapter: str, newest: int) -> None:
        """Take note of a step that was loaded, and unload what is too many."""
        with self._lock:
            self._steps[step] = self._steps.get(step) or _Loaded(adapter)
            self._steps.move_to_end(step)
            gone = self._too_many(keeping={step, newest})
        for adapter_name in gone:
            self._unload(adapter_name)

    def steps(self) -> list[int]:
        """Return the loaded steps."""
        with self._lock:
            return list(self._steps)

    def clear(self) -> None:
        """Unload all steps, leased or not."""
        with self._lock:
            gone = [loaded.adapter for loaded in self._steps.values()]
            self._steps.clear()
        for adapter in gone:
            self._unload(adapter)

    def _too_many(self, keeping: set[int]) -> list[str]:
        free = [s for s, loaded in self._steps.items() if s not in keeping and not loaded.leases]
        most = max(len(self._steps) - self._kept, 0)
        return [self._steps.pop(step).adapter for step in free[:most]]
