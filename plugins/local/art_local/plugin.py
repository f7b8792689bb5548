"""What art-local offers to art-core. Nothing heavy is imported before a backend is made."""

from __future__ import annotations

import inspect
from typing import Any

from art_core import Backend, BackendSpec, ConfigError, EngineCatalog, ModelCatalog, hookimpl
from art_core.errors import unknown


def create(**options: Any) -> Backend:
    """Make a `LocalBackend`; its options are the keyword arguments."""
    from art_local.threads import wait_asleep

    wait_asleep()
    from art_local.backend import LocalBackend

    known = inspect.signature(LocalBackend).parameters
    for option in options:
        if option not in known:
            raise ConfigError(unknown("backend 'local' option", option, known))
    return LocalBackend(**options)


def models() -> ModelCatalog:
    """Make the catalog behind `art models`."""
    from art_local.models import LocalCatalog

    return LocalCatalog()


def engines() -> EngineCatalog:
    """Make the catalog behind `art engines`."""
    from art_local.vllm.install import LocalEngines

    return LocalEngines()


@hookimpl
def art_backends() -> list[BackendSpec]:
    """Offer the local backend."""
    return [
        BackendSpec(
            name="local",
            create=create,
            summary=(
                "trains LoRA adapters (or all weights) and serves them in this "
                "process, on CPU or CUDA"
            ),
            models=models,
            engines=engines,
        )
    ]
