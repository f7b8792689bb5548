"""The hooks of art-local. Importing this module imports nothing heavy."""

from __future__ import annotations

from typing import Any

from art_core import BackendSpec, CommandSpec, EngineCatalog, MetricSpec, ModelCatalog, hookimpl
from art_core.base.collector import importing
from art_local.torch_environment import set_torch_environment


def __getattr__(name: str) -> Any:
    if name != "LocalBackend":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    set_torch_environment()
    with importing():
        from art_local.backend import LocalBackend

    return LocalBackend


def models() -> ModelCatalog:
    """Create the catalog for `art models`."""
    from art_local.models.find import LocalCatalog

    return LocalCatalog()


def engines() -> EngineCatalog:
    """Create the catalog for `art engines`."""
    from art_local.vllm.install import LocalEngines

    return LocalEngines()


@hookimpl
def art_backends() -> list[BackendSpec]:
    """Offer the local backend."""
    return [
        BackendSpec(
            name="local",
            create="art_local.plugin:LocalBackend",
            summary=(
                "trains LoRA adapters (or all weights) and serves them in this "
                "process, on CPU or CUDA"
            ),
            models=models,
            engines=engines,
        )
    ]


@hookimpl
def art_commands() -> list[CommandSpec]:
    """Offer `art plan`, `art export-weights` and `art checkpoints`."""
    from art_local.checkpoints.command import COMMAND as CHECKPOINTS
    from art_local.export.command import COMMAND as EXPORT
    from art_local.plan_command import COMMAND as PLAN

    return [PLAN, EXPORT, CHECKPOINTS]


@hookimpl
def art_metrics() -> list[MetricSpec]:
    """Describe the engines' measurements."""
    measurements = (
        ("running", "request", "requests that the engine's server computed at the same time, mean"),
        ("waiting", "request", "requests that waited in the engine's server, mean"),
        ("kv_cache_use", "share", "cache of keys and values in use in the server, mean"),
        ("prefix_hit_rate", "share", "prompt tokens that the engine did not compute again"),
        ("generation_tok_per_s", "token/s", "sampled tokens per second while requests ran"),
        ("restarts", "restart", "restarts of the server"),
    )
    return [
        MetricSpec(
            key=f"throughput/engine_{name}",
            unit=unit,
            help=meaning,
            combine="sum" if name == "restarts" else "mean",
        )
        for name, unit, meaning in measurements
    ]
