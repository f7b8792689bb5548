"""A model that lives in the backend: its policy, its trainer, its engine and its checkpoints."""

from __future__ import annotations

import copy
import importlib.metadata
import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch  # noqa: TID253
from safetensors.torch import load_file, save_file

from art_core import TrainResult, TrajectoryGroup
from art_core.base.errors import BackendError, ConfigError
from art_core.rl.batch import training_batch
from art_core.rl.config import TrainConfig
from art_core.rl.sequences import staleness
from art_local.engine import DeviceTurns
from art_local.engine.protocol import LocalEngine, StepWeights
from art_local.models.chat_template import FILE as TEMPLATE
from art_local.models.identity import BaseIdentity
from art_local.models.load import load_model
from art_local.models.placement import placement
from art_local.session.adapter_card import Recipe
from art_local.session.checkpoints import CheckpointStore, StoredCheckpoint
from art_local.session.leases import Lease, LoadedSteps
from art_local.training.policy import Policy
from art_local.training.reference import Reference
from art_local.training.trainer import Trainer

log = logging.getLogger("art_local")
OPTIMIZER, RNG = "optimizer.safetensors", "rng.safetensors"
TURN_TIMEOUT_S = 600.0
BASE = "base"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
PACKAGES = ("art-core", "art-local", "torch", "transformers", "peft")


def sharing_parameters(model: Any) -> Any:
    """Return a copy of a model's structure over the same parameters."""
    return copy.deepcopy(model, memo={id(p): p for p in model.parameters()})


class Resident:
    """One model's weights at their newest step. All but leases and names is called from the
    backend's training thread.
    """

    def __init__(
        self,
        *,
        name: str,
        base: BaseIdentity,
        store: CheckpointStore,
        policy: Policy,
        engine: LocalEngine,
        turns: DeviceTurns,
        recipe: Recipe,
        kept_steps: int,
        progress: bool,
        tokenizer: Any = None,
        chat_template: str | None = None,
        adapter_name: str | None = None,
        resting: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> None:
        self.name, self.base, self.store = name, base, store
        self.engine, self.policy = engine, policy
        self.step = self.served_step = 0
        self._adapter_name = adapter_name or name
        self._resting = resting or engine.resting
        self.trainer = Trainer(policy, turn=self._turn("training"), progress=progress)
        self._turns, self._recipe = turns, recipe
        self._tokenizer, self._chat_template = tokenizer, chat_template
        self._loading = threading.RLock()
        self._loaded = LoadedSteps(kept_steps, engine.unload)

    def resume(self, step: int | None = None) -> int:
        """Load the newest whole checkpoint, if any, and serve it; return its step.

        With a `step`, load that one, and set those after it aside. Raises ConfigError for a
        checkpoint of another base model or recipe, and for a step without one.
        """
        found = self.store.newest_whole() if step is None else self.store.older(step)
        if found is not None:
            self._check(found)
            self.policy.load(self.policy.read(found.path), found.path)
            self.trainer.optimizer.load(load_file(found.path / OPTIMIZER), found.path)
            self.policy.generator.set_state(load_file(found.path / RNG)["generator"])
            self.step = found.step
        if step is not None:
            self.store.abandon_after(step)
        self._publish()
        return self.step

    def train(self, groups: Sequence[TrajectoryGroup], config: TrainConfig) -> TrainResult:
        """Run one step, serve its weights, write its checkpoint.

        When the step itself fails the weights stay as they were. When only the checkpoint can't be
        written the step counts and is served, and the error says so. Raises EngineError, with the
        checkpoint written, when the engine does not take the new weights or has ended for good.
        """
        self.engine.check()
        started = time.monotonic()
        batch = training_batch(groups, config)
        before = self.step
        try:
            with self._resting():
                metrics = self.trainer.step(
                    batch.sequences,
                    config,
                    label=f"train step {before + 1}",
                    reference=self._reference(config),
                )
                self.step += 1
            self._publish()
        except BaseException as error:
            if self.step > before and config.save_checkpoint:
                self._checkpoint_beside(error)
            raise
        path = self._checkpoint() if config.save_checkpoint else None
        metrics["time/step_trainer_s"] = time.monotonic() - started
        metrics |= self.engine.step_metrics() | staleness(batch.sequences, before)
        return TrainResult(step=self.step, metrics={**batch.metrics, **metrics}, checkpoint=path)

    def _check(self, found: StoredCheckpoint) -> None:
        self.base.check(found)
        self._recipe.check(found)

    def _read(self, step: int) -> StoredCheckpoint:
        found = self.store.read(step)
        self._check(found)
        return found

    def _checkpoint_beside(self, cause: BaseException) -> None:
        """Write the checkpoint of a step whose weights the engine did not take: what was learned is
        not lost with the engine. A second error does not hide the first.
        """
        try:
            self._checkpoint()
        except Exception as error:
            log.error("%s", error)
            cause.add_note(str(error))

    def _checkpoint(self) -> Path:
        try:
            return self.store.write(self.step, self._fill, self._about()).path
        except BackendError as error:
            done = "trained and served" if self.served_step == self.step else "trained, not served"
            raise BackendError(f"step {self.step} is {done}, but {error}") from error

    @property
    def base_model(self) -> str:
        """The base model's name, as the user gave it."""
        return self.base.name

    def loaded_lease(self, step: int) -> Lease | None:
        """Return a lease of a step that the engine has; None when it would have to be loaded."""
        return Lease(BASE) if step == 0 else self._loaded.lease(step)

    def lease(self, step: int) -> Lease:
        """Return a lease of a step's weights, loading them from their checkpoint when needed.

        Raises KeyError for a step that is neither loaded nor stored.
        """
        with self._loading:
            while (lease := self.loaded_lease(step)) is None:
                if step not in self.store.steps():
                    raise KeyError(f"{self.name}@{step}")
                self._load(step, self._stored(self._read(step)))
        return lease

    def served_steps(self) -> list[int]:
        """Return the steps that can be asked for by name."""
        return sorted({self.served_step, *self._loaded.steps(), *self.store.steps()})

    @property
    def newest_adapter(self) -> str:
        """The engine's name for the newest weights."""
        return f"{self._adapter_name}@{self.step}" if self.step else BASE

    def unload(self) -> None:
        """Take this model's steps out of the engine."""
        self._loaded.clear()

    def _reference(self, config: TrainConfig) -> Reference | None:
        if not config.kl_penalty_coef:
            return None
        step = config.kl_penalty_reference_step or 0
        if step and step not in self.store.steps():
            raise ConfigError(
                f"kl_penalty_reference_step is {step}, which has no checkpoint; there are: "
                f"{', '.join(map(str, self.store.steps())) or 'none'}",
                "Leave it out for the base model.",
            )

        def tensors() -> Mapping[str, torch.Tensor] | None:
            if step:
                return self.policy.read(self._read(step).path)
            return None if self.policy.is_lora else self._base_weights()

        return tensors

    def _base_weights(self) -> Mapping[str, torch.Tensor]:
        """The parameters that whole fine-tuning began with, read again."""
        self.base.check_unchanged()
        where = placement("cpu", "float32")
        return dict(load_model(self.base.directory, where, torch.float32).named_parameters())

    def _publish(self) -> None:
        if self.step:
            base_model = self.base_model
            self._load(
                self.step,
                StepWeights(
                    merged=lambda: self.policy.serving,
                    write=lambda directory: self.policy.save(directory, base_model),
                ),
            )
            # from now on the model's bare name means this step
            self.served_step = self.step

    def _stored(self, found: StoredCheckpoint) -> StepWeights:
        def merged() -> Mapping[str, torch.Tensor]:
            with self._turns.take(f"loading step {found.step}", TURN_TIMEOUT_S):
                return self.policy.serving_of(self.policy.read(found.path))

        def write(directory: Path) -> None:
            for file in ADAPTER_FILES:
                shutil.copy2(found.path / file, directory / file)

        return StepWeights(merged=merged, write=write)

    def _load(self, step: int, weights: StepWeights) -> None:
        adapter = f"{self._adapter_name}@{step}"
        # held until what is too many is unloaded: it may be asked for, and loaded, at that moment
        with self._loading:
            self.engine.publish(adapter, weights)
            self._loaded.add(step, adapter, newest=self.step)

    def _turn(self, who: str) -> Callable[[], Any]:
        return lambda: self._turns.take(f"{who} {self.name}", TURN_TIMEOUT_S)

    def _fill(self, directory: Path) -> None:
        self.policy.save(directory, self.base_model)
        if not self.policy.is_lora and self._tokenizer is not None:
            # several templates would be a folder, and a checkpoint is a folder of files
            several = isinstance(self._tokenizer.chat_template, dict)
            self._tokenizer.save_pretrained(directory, save_jinja_files=not several)
        if self._chat_template is not None:
            (directory / TEMPLATE).write_text(self._chat_template, encoding="utf-8")
        save_file(self.trainer.optimizer.state(), directory / OPTIMIZER)
        save_file({"generator": self.policy.generator.get_state()}, directory / RNG)

    def _about(self) -> dict[str, Any]:
        return {
            "model": self.name,
            **self.base.about(),
            **self._recipe.about(),
            "seed": self._recipe.seed,
            "dtype": str(self.policy.dtype).removeprefix("torch."),
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        }
