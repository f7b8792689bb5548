"""The vLLM servers of a backend: one for each base model, shared by the models over it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from art_local.engines import ServingNeeds, start_vllm
from art_local.session.model_session import SeatOptions, SharedEngine
from art_local.vllm.engine import VllmEngine

if TYPE_CHECKING:
    from art_core import TrainableModel


@attrs.define(eq=False)
class Servers:
    """Servers by the directory of their base model. Used from the backend's worker thread."""

    _engines: dict[Path, VllmEngine] = attrs.field(factory=dict)

    def share(
        self, model: TrainableModel, directory: Path, options: SeatOptions, taken: Collection[str]
    ) -> SharedEngine | None:
        """Return the server of a base model, started when there is none yet, and a name for the
        model's adapters that is not among those taken; None for another engine than vLLM.
        """
        if options.engine.name != "vllm":
            return None
        if directory not in self._engines:
            needs = ServingNeeds(
                directory=directory,
                run_dir=model.run_dir.resolve(),
                trainer=options.placement,
                context_length=options.context_length,
                max_rank=options.recipe.rank,
                served_steps=options.served_steps,
                max_batch_size=options.max_batch_size,
                request_timeout_s=options.request_timeout_s,
            )
            self._engines[directory] = start_vllm(options.engine, needs)
        others = (f"{model.name}-{number}" for number in itertools.count(2))
        name = next(n for n in itertools.chain([model.name], others) if n not in taken)
        return SharedEngine(
            engine=self._engines[directory], adapter_name=name, resting=self.resting
        )

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Let all servers rest inside the block: each of them that shares the trainer's device
        holds memory there, whichever model is trained. One that has ended holds none.
        """
        with ExitStack() as stack:
            for engine in self._engines.values():
                if not engine.ended:
                    stack.enter_context(engine.resting())
            yield

    def end(self, directory: Path) -> None:
        """End the server of one base model."""
        asyncio.run(self._engines.pop(directory).close())

    def close(self) -> None:
        """End all servers."""
        for directory in list(self._engines):
            self.end(directory)
