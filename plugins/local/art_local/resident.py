"""A model that lives in the backend: its policy, its trainer, its engine and its checkpoints."""

from __future__ import annotations

import copy
import importlib.metadata
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch  # noqa: TID253
from safetensors.torch import load_file, save_file

from art_core import TrainResult, TrajectoryGroup
from art_core.errors import BackendError, ConfigError
from art_core.rl.batch import training_batch
from art_core.rl.config import TrainConfig
from art_local.checkpoints import CheckpointStore, StoredCheckpoint
from art_local.engine import DeviceTurns, TransformersEngine
from art_local.models import resolve_base_model
from art_local.placement import Placement, placement
from art_local.quiet import quiet_transformers
from art_local.training.policy import Policy
from art_local.training.reference import Reference
from art_local.training.trainer import Trainer

log = logging.getLogger("art_local")
OPTIMIZER, RNG = "optimizer.safetensors", "rng.safetensors"
TURN_TIMEOUT_S = 600.0
PACKAGES = ("art-core", "art-local", "torch", "transformers", "peft")


@attrs.frozen(kw_only=True)
class Recipe:
    """How a model is adapted: by LoRA of a rank and alpha (None: whole), drawn from a seed."""

    lora: tuple[int, int] | None
    seed: int

    def __str__(self) -> str:
        return (
            "full fine-tuning" if self.lora is None else "LoRA rank {} alpha {}".format(*self.lora)
        )

    def about(self) -> dict[str, Any]:
        """As a manifest says it."""
        rank, alpha = self.lora or (None, None)
        return {"lora_rank": rank, "lora_alpha": alpha, "full_finetune": self.lora is None}


def load_model(directory: Path, placement: Placement, dtype: torch.dtype) -> Any:
    """Load a causal language model from safetensors onto the device; the global RNG stays as it
    was.
    """
    from transformers import AutoModelForCausalLM

    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, use_safetensors=True, local_files_only=True
        )
    return model.to(placement.device)


def sharing_parameters(model: Any) -> Any:
    """Return a copy of a model's structure over the same parameters."""
    return copy.deepcopy(model, memo={id(p): p for p in model.parameters()})


class Resident:
    """One model's weights at their newest step. All but `serve` runs on the backend's training
    thread.
    """

    def __init__(
        self,
        *,
        name: str,
        base_model: str,
        store: CheckpointStore,
        policy: Policy,
        engine: TransformersEngine,
        turns: DeviceTurns,
        recipe: Recipe,
        kept_steps: int,
        progress: bool,
    ) -> None:
        self.name, self.base_model, self.store = name, base_model, store
        self.engine, self.policy = engine, policy
        self.step = 0
        self.trainer = Trainer(policy, turn=self._turn("training"), progress=progress)
        self._turns, self._recipe, self._kept_steps = turns, recipe, kept_steps
        self._serving = threading.Lock()
        self._loaded: OrderedDict[int, str] = OrderedDict()

    def resume(self) -> int:
        """Load the newest whole checkpoint, if any, and serve it; return its step.

        Raises ConfigError for a checkpoint of another base model or recipe.
        """
        found = self.store.newest_whole()
        if found is not None:
            self._check_recipe(found)
            self.policy.load(load_file(found.path / self.policy.weights_file), found.path)
            self.trainer.optimizer.load(load_file(found.path / OPTIMIZER), found.path)
            self.policy.generator.set_state(load_file(found.path / RNG)["generator"])
            self.step = found.step
            self._publish()
        return self.step

    def train(self, groups: Sequence[TrajectoryGroup], config: TrainConfig) -> TrainResult:
        """Run one step, serve its weights, write its checkpoint.

        When the step itself fails the weights stay as they were. When only the checkpoint can't be
        written the step counts and is served, and the error says so.
        """
        started = time.monotonic()
        batch = training_batch(groups, config)
        metrics = self.trainer.step(
            batch.sequences,
            config,
            label=f"train step {self.step + 1}",
            reference=self._reference(config),
        )
        self.step += 1
        self._publish()
        path = None
        if config.save_checkpoint:
            try:
                path = self.store.write(self.step, self._fill, self._about()).path
            except BackendError as error:
                raise BackendError(
                    f"step {self.step} is trained and served, but {error}"
                ) from error
        metrics["time/step_trainer_s"] = time.monotonic() - started
        return TrainResult(step=self.step, metrics={**batch.metrics, **metrics}, checkpoint=path)

    def adapter(self, step: int) -> str:
        """Return the engine's adapter with a step's weights, loading it from its checkpoint when
        needed.

        Raises KeyError for a step that is neither loaded nor stored.
        """
        if step == 0:
            return "base"
        with self._serving:
            if step in self._loaded:
                self._loaded.move_to_end(step)
                return self._loaded[step]
            if step not in self.store.steps():
                raise KeyError(f"{self.name}@{step}")
            found = self.store.read(step)
            with self._turns.take(f"loading step {step}", TURN_TIMEOUT_S):
                tensors = load_file(found.path / self.policy.weights_file)
                return self._load(step, self.policy.serving_of(tensors))

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
                return load_file(self.store.read(step).path / self.policy.weights_file)
            return None if self.policy.is_lora else self._base_weights()

        return tensors

    def _base_weights(self) -> Mapping[str, torch.Tensor]:
        """The parameters that whole fine-tuning began with, read again."""
        where = placement("cpu", "float32")
        directory = resolve_base_model(self.base_model)
        return dict(load_model(directory, where, torch.float32).named_parameters())

    def _publish(self) -> None:
        with self._serving:
            if self.step:
                self._load(self.step, self.policy.serving)

    def _load(self, step: int, tensors: dict[str, torch.Tensor]) -> str:
        adapter = f"{self.name}@{step}"
        self.engine.load(adapter, tensors)
        self._loaded[step] = adapter
        self._loaded.move_to_end(step)
        for old in [s for s in self._loaded if s not in (step, self.step)]:
            if len(self._loaded) > self._kept_steps:
                self.engine.unload(self._loaded.pop(old))
        return adapter

    def _turn(self, who: str) -> Callable[[], Any]:
        return lambda: self._turns.take(f"{who} {self.name}", TURN_TIMEOUT_S)

    def _fill(self, directory: Path) -> None:
        self.policy.save(directory, self.base_model)
        save_file(self.trainer.optimizer.state(), directory / OPTIMIZER)
        save_file({"generator": self.policy.generator.get_state()}, directory / RNG)

    def _about(self) -> dict[str, Any]:
        return {
            "model": self.name,
            "base_model": self.base_model,
            **self._recipe.about(),
            "seed": self._recipe.seed,
            "dtype": str(self.policy.dtype).removeprefix("torch."),
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        }

    def _check_recipe(self, found: StoredCheckpoint) -> None:
        wanted = {"base_model": self.base_model, **self._recipe.about()}
        for key, value in wanted.items():
            stored = found.manifest.get(key)
            if stored != value:
                raise ConfigError(
                    f"checkpoint {found.path} was trained with {key}={stored!r}, this run "
                    f"asks for {value!r}",
                    "Use the same options to resume, or another model name to start afresh.",
                )
