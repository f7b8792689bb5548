"""The plugin's hooks: the backend `ray`. Ray and torch are imported when a backend is made."""

from __future__ import annotations

import inspect
from typing import Any

from art_core import Backend, BackendSpec, CommandSpec, MetricSpec, hookimpl
from art_ray.options import RayOptions


def create(**options: Any) -> Backend:
    """Return a `RayBackend`."""
    from art_local.torch_environment import set_torch_environment

    given = RayOptions(**options)
    set_torch_environment()
    from art_ray.backend import RayBackend

    return RayBackend(given)


create.__signature__, create.__doc__ = inspect.signature(RayOptions), RayOptions.__doc__  # type: ignore[attr-defined]


@hookimpl
def art_backends() -> list[BackendSpec]:
    """Offer the backend `ray`."""
    return [
        BackendSpec(
            name="ray",
            create=create,
            summary="the local backend on many machines: trainer, engines and rollouts in Ray",
        )
    ]


@hookimpl
def art_commands() -> list[CommandSpec]:
    """Offer `art launch`."""
    from art_ray.launch.command import COMMAND

    return [COMMAND]


@hookimpl
def art_metrics() -> list[MetricSpec]:
    """Describe the trainer's restarts."""
    return [
        MetricSpec(
            key="throughput/trainer_restarts",
            unit="restart",
            help="restarts of the trainer whose node was lost",
            combine="sum",
        )
    ]
