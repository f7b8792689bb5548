"""ART's backends: one of ours for each set of options that models ask for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

import art_core
from art._missing import BACKEND, missing
from art._options import LIKE_ART, train_options
from art.trajectories import TrajectoryGroup

if TYPE_CHECKING:
    from art.model import TrainableModel


class Backend:
    """A backend of ART. `path` is the directory of the runs of its models."""

    ours: ClassVar[str] = ""
    """The name of the backend of art-core."""

    def __init__(self, *, path: str | None = None, **options: Any) -> None:
        if not self.ours:
            raise missing("Backend", {"Backend": _ABSTRACT}, "art")
        self.path = path
        self._given = {name: value for name, value in options.items() if value is not None}
        self._made: dict[str, art_core.Backend] = {}

    def options_of(self, model: TrainableModel) -> dict[str, Any]:  # noqa: ARG002
        """Return the options of our backend that a model asks for."""
        return {}

    def train_defaults(self, model: TrainableModel) -> dict[str, Any]:  # noqa: ARG002
        """Return the options of a training step that differ from those of art-core."""
        return LIKE_ART

    def of(self, model: TrainableModel) -> art_core.Backend:
        """Return our backend for a model. Models with the same options share one."""
        options = {**self.options_of(model), **self._given}
        key = repr(sorted(options.items()))
        if key not in self._made:
            self._made[key] = art_core.backend(self.ours, **options)
        return self._made[key]

    async def register(self, model: TrainableModel) -> None:
        """Register a model, as `model.register` does."""
        await model.register(self)

    async def train(
        self, model: TrainableModel, trajectory_groups: Iterable[TrajectoryGroup], **options: Any
    ) -> art_core.TrainResult:
        """Train a step with ART's options and defaults; log it with `model.log`."""
        ours = train_options(options, self.train_defaults(model))
        return await self.of(model).train(model, model.with_tokens(trajectory_groups), **ours)

    async def close(self) -> None:
        """Stop serving and free what the models hold."""
        for backend in self._made.values():
            await backend.close()

    def _close(self) -> None:
        """Close from code that cannot wait, also inside an event loop."""
        closing = threading.Thread(target=lambda: asyncio.run(self.close()), name="art-close")
        closing.start()
        closing.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def __getattr__(self, name: str) -> Any:
        raise missing(name, BACKEND, type(self).__name__)


_ABSTRACT = (
    "a backend of no kind",
    "Use art.LocalBackend(), art.ServerlessBackend(base_url=...) or art.tinker.TinkerBackend().",
)
AnyModel = Any
AnyTrainableModel = Any
