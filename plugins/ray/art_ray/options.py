"""The options of the backend, declared and checked. Nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import attrs

from art_core import ConfigError
from art_core.base.errors import unknown
from art_local.options import SharedOptions

FOREIGN = ("engine_device", "engine_url", "engine_key")
"""Options of the local backend about a vLLM server of one machine."""


def _amount(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
        raise ConfigError(f"{attribute.name} must be a number of at least 0, got {value!r}")


def _count(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    least = -1 if attribute.name.startswith("max_") else 1
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(
            f"{attribute.name} must be a whole number of at least {least}, got {value!r}"
        )


def _resources(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    for name, amount in value.items():
        if isinstance(amount, bool) or not isinstance(amount, (int, float)) or amount <= 0:
            raise ConfigError(f"{attribute.name}[{name!r}] must be a positive number")


@attrs.frozen(kw_only=True)
class Resources:
    """The resources of one actor or task, as Ray counts them; `resources` are custom ones."""

    num_cpus: float = attrs.field(default=1, validator=_amount)
    num_gpus: float = attrs.field(default=0, validator=_amount)
    resources: Mapping[str, float] = attrs.field(factory=dict, validator=_resources)

    @classmethod
    def of(cls, option: str, values: Mapping[str, Any] | None) -> Self:
        """Return the resources of an option; ConfigError for an unknown or invalid entry."""
        given = dict(values or {})
        known = list(attrs.fields_dict(cls))
        for name in given:
            if name not in known:
                raise ConfigError(unknown(f"{option} entry", name, known))
        try:
            return cls(**given)
        except ConfigError as error:
            raise ConfigError(f"{option}: {error}") from None

    def bundle(self) -> dict[str, float]:
        """Return them as a bundle of a placement group."""
        amounts = {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.resources}
        return {name: float(amount) for name, amount in amounts.items() if amount}

    def requested(self) -> dict[str, Any]:
        """Return them as options of a Ray actor or task."""
        return {
            "num_cpus": self.num_cpus,
            "num_gpus": self.num_gpus,
            "resources": dict(self.resources),
        }


@attrs.frozen(kw_only=True)
class TrainerResources(Resources):
    """The trainer: `max_restarts` is how often it may be lost, -1 for any number of times.
    `num_workers` processes share its work on one node, a GPU for each if it has GPUs.
    """

    max_restarts: int = attrs.field(default=3, validator=_count)
    num_workers: int = attrs.field(default=1, validator=_count)

    def __attrs_post_init__(self) -> None:
        if self.num_workers > 1 and self.num_gpus not in (0, self.num_workers):
            raise ConfigError(
                f"{self.num_workers} workers need {self.num_workers} GPUs, or none for CPUs, got "
                f"num_gpus={self.num_gpus}"
            )

    def devices(self) -> dict[str, Any]:
        """Return the option of the local backend for several workers."""
        if self.num_workers == 1:
            return {}
        names = [f"cuda:{n}" if self.num_gpus else "cpu" for n in range(self.num_workers)]
        return {"device": None, "trainer_devices": names}


@attrs.frozen(kw_only=True)
class EngineResources(Resources):
    """The engines: `replicas` of them, each with these resources."""

    replicas: int = attrs.field(default=1, validator=_count)
    max_restarts: int = attrs.field(default=-1, validator=_count)


@attrs.frozen(kw_only=True)
class RolloutResources(Resources):
    """Rollouts as tasks: each has these resources, and is run again up to `max_retries` times when
    its node is lost.
    """

    max_retries: int = attrs.field(default=3, validator=_count)


@attrs.frozen(kw_only=True)
class RayOptions(SharedOptions):
    """Options of `art.backend("ray", ...)`.

    Ray's own:

    - `trainer`: resources of the trainer: `num_cpus` (1), `num_gpus` (0), `resources`,
      `max_restarts` (3), how often it may be lost, and `num_workers` (1), processes on its node
      that share a step's work, with a GPU each.
    - `engines`: `replicas` (1) of the engine, each with `num_cpus`, `num_gpus`, `resources` and
      `max_restarts` (-1: without a limit).
    - `rollouts`: resources of each rollout that `art_ray.remote_rollout` runs as a task, and
      `max_retries` (3). With it, the endpoint listens on the address that this machine has in the
      cluster; without it, on the loopback address.
    - `address`: the cluster to join, as `ray.init` takes it; by default the one of this machine, or
      a new one.
    - `runtime_env`: of Ray's workers, such as the packages to install there.
    - `strategy`: how trainer and engines are placed: "PACK", "SPREAD", "STRICT_PACK" or
      "STRICT_SPREAD".
    - `node_usd_per_hour`: the price of a whole node, or prices by a node's label, accelerator,
      custom resource or address, "*" for others. Each node that holds a part of the model is
      charged once. Without it, GPUs are charged as the local backend does.
    - `start_timeout_s`: how long resources and models may take to be ready.

    Those of the local backend, for the trainer and for each engine: `device`, `dtype`, `engine`
    ("transformers" or "vllm"), `engine_args`, `engine_timeouts`, `gpu_cost_per_hour_usd`,
    `lora_rank`, `lora_alpha`, `activation_checkpointing`, `chat_template`, `seed`, `deterministic`,
    `accept_changes`, `max_batch_size`, `served_steps`, `request_timeout_s`, `progress`.
    """

    trainer: Mapping[str, Any] | None = None
    engines: Mapping[str, Any] | None = None
    rollouts: Mapping[str, Any] | None = None
    address: str | None = None
    runtime_env: Mapping[str, Any] | None = None
    strategy: str = "PACK"
    node_usd_per_hour: float | Mapping[str, float] | None = None
    start_timeout_s: float = attrs.field(default=600.0, validator=_amount)

    def __attrs_post_init__(self) -> None:
        for name in FOREIGN:
            if getattr(self, name) is not None:
                raise ConfigError(
                    f"{name} is for the backend 'local'; engines of 'ray' are actors",
                    "Give engines={'replicas': ..., 'num_gpus': ...}.",
                )
        if self.strategy not in STRATEGIES:
            raise ConfigError(unknown("strategy", self.strategy, STRATEGIES))
        if self.engine not in ENGINES:
            raise ConfigError(unknown("engine", self.engine, ENGINES))
        prices = self.node_usd_per_hour
        for price in prices.values() if isinstance(prices, Mapping) else (prices,):
            if price is not None and (isinstance(price, bool) or not price >= 0):
                raise ConfigError(f"node_usd_per_hour must be at least 0, got {price!r}")
        assert self.parts() is not None

    def parts(self) -> tuple[TrainerResources, EngineResources, RolloutResources | None]:
        """Return the resources of trainer, engines and rollouts; ConfigError for invalid ones."""
        rollouts = self.rollouts
        return (
            TrainerResources.of("trainer", self.trainer),
            EngineResources.of("engines", self.engines),
            None if rollouts is None else RolloutResources.of("rollouts", rollouts),
        )

    def local(self, **changes: Any) -> dict[str, Any]:
        """Return the options that the local backend has too."""
        names = attrs.fields_dict(SharedOptions)
        return {name: getattr(self, name) for name in names} | changes

    def engine_name(self) -> str:
        """Return the engine that the actors run."""
        return "transformers" if self.engine == "auto" else self.engine


ENGINES = ("auto", "transformers", "vllm")
STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
