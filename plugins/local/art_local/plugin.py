"""The hooks of art-local. Importing this module imports nothing heavy."""

from __future__ import annotations

import os
import sys
from typing import Any

from art_core import BackendSpec, CommandSpec, EngineCatalog, MetricSpec, ModelCatalog, hookimpl

WAIT_ASLEEP = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}


def wait_asleep() -> bool:
    """Make torch's threads sleep while they wait, unless the user set OpenMP's wait policy.

    Threads that spin slow other busy processes on the same cores 10 times and more. Returns False
    when torch is loaded already: it reads the policy once, at import.
    """
    for name, value in WAIT_ASLEEP.items():
        os.environ.setdefault(name, value)
    return "torch" not in sys.modules


def __getattr__(name: str) -> Any:
    if name != "LocalBackend":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    wait_asleep()
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
    """Offer `art plan`."""
    from art_local.plan_command import COMMAND

    return [COMMAND]


@hookimpl
def art_metrics() -> list[MetricSpec]:
    """Describe the measurements of the vLLM server."""
    measurements = (
        ("running", "request", "requests that the engine's server computed at the same time, mean"),
        ("waiting", "request", "requests that waited in the engine's server, mean"),
        ("kv_cache_use", "share", "cache of keys and values in use in the server, mean"),
        ("prefix_hit_rate", "share", "prompt tokens that were in the server's cache"),
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
