"""A backend whose weights are one number: it advances steps, keeps checkpoints and serves an echo.

The smallest whole backend: an example for authors of backends, and a stand-in for tests.
"""

from __future__ import annotations

import json
import shutil
import time
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from art_core.backends import BackendSpec, Checkpoint, Endpoint, TrainResult
from art_core.base.errors import BackendError
from art_core.base.files import replace_json
from art_core.data.trajectory import TrajectoryGroup
from art_core.metrics.usage import GpuTime
from art_core.rl.batch import TrainingBatch, training_batch
from art_core.rl.config import TrainConfig
from art_core.testing.echo_server import LOGPROB, EchoServer, Reply

if TYPE_CHECKING:
    from art_core.model.trainable import TrainableModel


def last_message(messages: Sequence[dict[str, Any]], step: int) -> str:
    """Answer with the last message, whatever the step."""
    del step
    return str(messages[-1].get("content") or "")


@attrs.define(kw_only=True, eq=False)
class EchoBackend:
    """Answers with `reply(messages, step)`, by default the last message.

    A step that has something to learn from changes the weights, a number from 0 to 1; the log-prob
    of every token is `LOGPROB` minus that number. A device-hour costs `gpu_cost_per_hour_usd`.
    """

    reply: Reply = last_message
    gpu_cost_per_hour_usd: float | None = None
    _held: dict[str, _Weights] = attrs.field(factory=dict, init=False)
    _server: EchoServer | None = attrs.field(default=None, init=False)

    async def register(self, model: TrainableModel) -> Endpoint:
        """Take up the model at its last checkpoint, and serve it."""
        self._held[model.name] = _Weights.load(model.base_model, model.run_dir / "checkpoints")
        if self._server is None:
            self._server = EchoServer.start(self, self.reply, self.logprob_of)
        return Endpoint(base_url=self._server.url, api_key="echo", model_name=model.name)

    async def unregister(self, model: TrainableModel) -> None:
        """Forget the model; its checkpoints stay."""
        self._held.pop(model.name, None)

    async def train(
        self, model: TrainableModel, groups: Sequence[TrajectoryGroup], **options: Any
    ) -> TrainResult:
        """Make the batch, change the weights if it is not empty, advance the step."""
        weights, config = self._weights(model), TrainConfig.of(model.plugins.losses(), **options)
        start = time.monotonic()
        batch = training_batch(groups, config)
        weights.learn(batch)
        checkpoint = weights.save() if config.save_checkpoint else None
        seconds = time.monotonic() - start
        model.charge(
            GpuTime(device="echo", seconds=seconds, usd_per_hour=self.gpu_cost_per_hour_usd)
        )
        metrics = batch.metrics | {
            "data/step_num_gradient_steps": float(not batch.empty),
            "time/step_trainer_s": seconds,
        }
        return TrainResult(step=weights.step, metrics=metrics, checkpoint=checkpoint)

    async def step(self, model: TrainableModel) -> int:
        """Return how often the model was trained."""
        return self._weights(model).step

    async def checkpoints(self, model: TrainableModel) -> Sequence[Checkpoint]:
        """Return the checkpoints, oldest first."""
        weights = self._weights(model)
        return [Checkpoint(step=step, path=weights.path(step)) for step in weights.kept]

    async def delete_checkpoints(self, model: TrainableModel, keep: Collection[int]) -> list[int]:
        """Delete all checkpoints but those steps and the newest; return the deleted steps."""
        weights = self._weights(model)
        deleted = [step for step in weights.kept[:-1] if step not in keep]
        for step in deleted:
            shutil.rmtree(weights.path(step))
            weights.kept.remove(step)
        return deleted

    async def close(self) -> None:
        """Stop serving; a second call does nothing."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def names(self) -> Sequence[str]:
        """Return the model names that the endpoint answers to."""
        return list({name: None for held, w in self._held.items() for name in w.names(held)})

    def step_of(self, name: str) -> int | None:
        """Return the step of a model name's weights; None for an unknown name."""
        for held, weights in self._held.items():
            steps = weights.names(held)
            if name in steps:
                return steps[name]
        return None

    def logprob_of(self, name: str) -> float:
        """Return the log-prob of each token of a model name's answers; it shows the weights."""
        for held, weights in self._held.items():
            if name in weights.names(held):
                return LOGPROB - weights.values.get(self.step_of(name) or 0, 0.0)
        return LOGPROB

    def _weights(self, model: TrainableModel) -> _Weights:
        if model.name not in self._held:
            raise BackendError(
                f"model {model.name!r} is not registered here",
                "Call await model.register(backend) first.",
            )
        return self._held[model.name]


@attrs.define(kw_only=True)
class _Weights:
    base: str
    folder: Path
    step: int
    kept: list[int]
    values: dict[int, float]
    """The number of each step that is served; 0 is the base model's."""

    @classmethod
    def load(cls, base: str, folder: Path) -> _Weights:
        manifests = (json.loads(path.read_bytes()) for path in folder.glob("*/manifest.json"))
        values = {each["step"]: each.get("weights", 0.0) for each in manifests}
        kept = sorted(values)
        step = kept[-1] if kept else 0
        return cls(base=base, folder=folder, step=step, kept=kept, values={0: 0.0, **values})

    def learn(self, batch: TrainingBatch) -> None:
        value = self.values[self.step]
        if not batch.empty:
            seen = repr([value, *((s.token_ids, s.advantage) for s in batch.sequences)])
            value = zlib.crc32(seen.encode()) / 2**32
        self.step += 1
        self.values[self.step] = value

    def names(self, name: str) -> dict[str, int]:
        steps = {f"{name}@{step}": step for step in sorted({0, *self.kept, self.step})}
        return {name: self.step, **steps, self.base: 0}

    def path(self, step: int) -> Path:
        return self.folder / f"{step:04d}"

    def save(self) -> Path:
        path = self.path(self.step)
        manifest = {"step": self.step, "weights": self.values[self.step]}
        replace_json(path / "manifest.json", manifest)
        self.kept.append(self.step)
        return path


def echo_spec() -> BackendSpec:
    """Return the spec that a plugin would offer: `Plugins.register` it with an `art_backends`
    hook.
    """
    return BackendSpec(
        name="echo", create=EchoBackend, summary="trains nothing and answers what it was told"
    )
