"""The trainer: an actor that runs the local backend over files of its own."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from art_core import GpuTime, Plugins, TrainResult
from art_local.torch_environment import set_torch_environment
from art_ray.files import Files, read_files, unpacked, write_files
from art_ray.nodes import ActorPlace, place_here

if TYPE_CHECKING:
    from art_local.backend import LocalBackend


class NotOpenError(Exception):
    """The trainer was lost and started again since the last call."""


@attrs.frozen(kw_only=True)
class ModelIdentity:
    """A model of the driver: its names, and its base model as the driver names it."""

    name: str
    project: str
    base_model: str


@attrs.frozen(kw_only=True)
class TrainedStep:
    """A step that was trained: its metrics, and the files of its checkpoint."""

    step: int
    metrics: dict[str, float]
    files: Files = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class ModelHere:
    """The model in the actor's process, with the attributes that the local backend reads of it."""

    name: str
    project: str
    base_model: str
    run_dir: Path
    plugins: Plugins = attrs.field(factory=Plugins.discover, repr=False)

    def charge(self, time: GpuTime) -> None:
        """Do nothing: the driver charges the nodes."""


class TrainerWorker:
    """The actor. `open` loads a checkpoint, also after it was lost and started again."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = dict(options)
        self._backend: LocalBackend | None = None
        self._model: Any = None

    async def open(
        self, identity: ModelIdentity, step: int, files: Files | None
    ) -> tuple[int, ActorPlace]:
        """Load a model at the checkpoint with these files, or fresh; return its step, and where the
        trainer is. A model that was loaded before is dropped.
        """
        await self.close()
        run_dir = Path(tempfile.mkdtemp(prefix="art-ray-trainer-"))
        if files is not None:
            await asyncio.to_thread(write_files, files, _checkpoint(run_dir, step))
        self._model = ModelHere(run_dir=run_dir, **attrs.asdict(identity))
        self._backend = await asyncio.to_thread(self._made)
        await self._backend.register(self._model)
        return await self._backend.step(self._model), place_here()

    async def train(
        self,
        groups: Sequence[bytes],
        options: Mapping[str, Any],
        needed: Mapping[int, Files],
    ) -> TrainedStep:
        """Run a step; `needed` are checkpoints of earlier steps that it reads."""
        for step, files in needed.items():
            if not _checkpoint(self._model.run_dir, step).exists():
                await asyncio.to_thread(write_files, files, _checkpoint(self._model.run_dir, step))
        decoded = [unpacked(group) for group in groups]
        result = await self._opened().train(
            self._model, decoded, **{**options, "save_checkpoint": True}
        )
        return await self._stepped(result, needed)

    async def train_sft(self, batches: Sequence[bytes], options: Mapping[str, Any]) -> TrainedStep:
        """Run a step of supervised fine-tuning."""
        decoded = [list(unpacked(batch)) for batch in batches]
        result = await self._opened().train_sft(
            self._model, decoded, **{**options, "save_checkpoint": True}
        )
        return await self._stepped(result, ())

    async def close(self) -> None:
        """Drop the model and its files."""
        backend, self._backend = self._backend, None
        if backend is not None:
            await backend.close()
            await asyncio.to_thread(shutil.rmtree, self._model.run_dir, ignore_errors=True)

    async def _stepped(self, result: TrainResult, keep: Any) -> TrainedStep:
        assert result.checkpoint is not None
        files = await asyncio.to_thread(read_files, result.checkpoint)
        await self._opened().delete_checkpoints(self._model, set(keep))
        return TrainedStep(step=result.step, metrics=result.metrics, files=files)

    def _made(self) -> LocalBackend:
        set_torch_environment()
        from art_local.backend import LocalBackend

        return LocalBackend(**self._options)

    def _opened(self) -> LocalBackend:
        if self._backend is None:
            raise NotOpenError("the trainer was started again, and has no model yet")
        return self._backend


def _checkpoint(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"{step:04d}"
