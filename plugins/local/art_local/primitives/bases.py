"""Loaded base models: each with an engine that samples from it and from adapters over it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from art_core import GpuTime
from art_core.base.collector import collector_paused
from art_core.base.errors import ConfigError
from art_local.engine import DeviceLock, TransformersEngine
from art_local.engine.layer_types import check_servable
from art_local.engines import embedded_engine
from art_local.models.find import BaseIdentity, resolve_base_model
from art_local.models.load import Loader, refused_unless_possible, sharing_parameters
from art_local.models.placement import Placement
from art_local.options import LocalOptions
from art_local.primitives.adapter import AdamStep, Adapter
from art_local.primitives.datum import Datum, Loss
from art_local.training.policy import Policy

MAX_RANK = 256
LOCK_TIMEOUT_S = 600.0


@attrs.frozen(kw_only=True)
class LoadedBase:
    """A base model: its engine and its tokenizer, and what adapters over it may have."""

    name: str
    identity: BaseIdentity
    model: Any
    engine: TransformersEngine
    tokenizer: Any

    @property
    def vocabulary(self) -> int:
        """The number of tokens that the model has an embedding for."""
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def max_rank(self) -> int:
        """The largest rank of an adapter."""
        return min(MAX_RANK, int(self.model.config.get_text_config().hidden_size))

    @property
    def architecture(self) -> str:
        """The class of the model."""
        return type(self.model).__name__


class Primitives:
    """Makes adapters over base models, for servers that compose training steps themselves.

    Methods block, and load a base model at its first use; call them from one thread. `names` maps
    the names that clients may use to paths or names of base models.
    """

    def __init__(
        self, options: LocalOptions, where: Placement, loader: Loader, lock: DeviceLock
    ) -> None:
        if options.full_finetune or not loader.merges or options.engine == "vllm":
            raise ConfigError(
                "single operations need LoRA and the embedded engine",
                "Leave full_finetune and engine out.",
            )
        if len(options.trainer_devices or ()) > 1:
            raise ConfigError(
                "single operations run on one device, and trainer_devices names several",
                "Give one device.",
            )
        self._options, self._where, self._loader, self._lock = options, where, loader, lock
        self._bases: dict[Path, LoadedBase] = {}

    def loss(self, name: str, options: Mapping[str, float | str]) -> Loss:
        """Return a loss by name; ConfigError for an unknown loss or option."""
        return Loss.of(name, options)

    def datum(self, tokens: np.ndarray, inputs: Mapping[str, np.ndarray], loss: Loss) -> Datum:
        """Return a datum; ConfigError for inputs that the loss lacks or does not have."""
        return Datum.of(tokens, inputs, loss)

    def adam(self, **given: float) -> AdamStep:
        """Return the options of an optimizer step."""
        return AdamStep(**given)

    def base(self, name: str, path: str) -> LoadedBase:
        """Return a base model under a name; load it first if necessary. ConfigError for one that
        can't be used.
        """
        directory = resolve_base_model(path, progress=self._options.progress)
        if directory not in self._bases:
            where = self._where
            with collector_paused():
                model = self._loader.base(directory, where, where.dtype)
                check_servable(model.config)
                engine = embedded_engine(model, self._options, self._lock)
                self._bases[directory] = LoadedBase(
                    name=name,
                    identity=BaseIdentity.of(name, directory),
                    model=model,
                    engine=engine,
                    tokenizer=_tokenizer(directory),
                )
        return attrs.evolve(self._bases[directory], name=name)

    def adapter(self, base: LoadedBase, rank: int, seed: int) -> Adapter:
        """Create an adapter of a rank that does not change the model yet; `seed` draws its A."""
        turn, possible = self._turn("creating an adapter"), refused_unless_possible
        with collector_paused(), possible(base.architecture, "trained"), turn:
            policy = Policy(
                sharing_parameters(base.model),
                dtype=self._where.dtype,
                lora=(rank, self._options.lora_alpha),
                seed=seed,
                loader=self._loader,
                activation_checkpointing=self._options.activation_checkpointing,
            )
        return Adapter(policy, base.name, partial(self._turn, "training"))

    def serving_of(self, base: LoadedBase, directory: Path) -> Mapping[str, Any]:
        """Return the merged weights of a saved adapter of any rank."""
        rank = json.loads((directory / "adapter_config.json").read_text())["r"]
        return self.adapter(base, rank, 0).serving_of(directory)

    def device_time(self, seconds: float) -> list[GpuTime]:
        """Return what to charge for seconds of the device; a CPU only if it has a price."""
        price = self._options.gpu_cost_per_hour_usd
        if self._where.device.type == "cpu" and price is None:
            return []
        name = self._where.device_name
        return [GpuTime(device=name, count=1, seconds=seconds, usd_per_hour=price)]

    async def close(self) -> None:
        """Close the engines."""
        for base in self._bases.values():
            await base.engine.close()
        self._bases.clear()

    def _turn(self, purpose: str) -> AbstractContextManager[None]:
        return self._lock.hold(purpose, LOCK_TIMEOUT_S)


def _tokenizer(directory: Path) -> Any:
    """Load a tokenizer, with or without a chat template: clients render their prompts."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)
