"""The vLLM servers of a backend: one for each base model, shared by the models over it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import attrs

from art_local.vllm.engine import VllmEngine


@attrs.frozen(kw_only=True, eq=False)
class SharedEngine:
    """A base model's engine, the name of one model's adapters in it, and a context in which all
    servers of the pool sleep.
    """

    engine: VllmEngine
    adapter_name: str
    asleep: Callable[[], AbstractContextManager[None]]


@attrs.define(eq=False)
class VllmPool:
    """VllmPool by the directory of their base model. Used from the backend's worker thread."""

    _engines: dict[Path, VllmEngine] = attrs.field(factory=dict)

    def share(
        self, directory: Path, name: str, used: Collection[str], start: Callable[[], VllmEngine]
    ) -> SharedEngine:
        """Return the server of a base model, started if there is none yet, and a name for the
        model's adapters that is not among those in use.
        """
        if directory not in self._engines:
            self._engines[directory] = start()
        numbered = (f"{name}-{number}" for number in itertools.count(2))
        free = next(each for each in itertools.chain([name], numbered) if each not in used)
        return SharedEngine(engine=self._engines[directory], adapter_name=free, asleep=self.asleep)

    @contextmanager
    def asleep(self) -> Iterator[None]:
        """Let all servers sleep inside the block: each one on the trainer's device occupies memory
        there, whichever model is trained. A server that has ended occupies none.
        """
        with ExitStack() as stack:
            for engine in self._engines.values():
                if not engine.ended:
                    stack.enter_context(engine.asleep())
            yield

    def end(self, directory: Path) -> None:
        """End the server of one base model."""
        asyncio.run(self._engines.pop(directory).close())

    def close(self) -> None:
        """End all servers."""
        for directory in list(self._engines):
            self.end(directory)
