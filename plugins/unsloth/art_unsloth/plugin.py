"""The plugin's hooks: the backend `unsloth`. Unsloth and torch are imported in a worker only."""

from __future__ import annotations

import importlib.util
import inspect
from typing import Any

from art_core import Backend, BackendSpec, ConfigError, hookimpl
from art_unsloth.options import UnslothOptions

NEEDED = ("unsloth", "unsloth_zoo")


def create(**options: Any) -> Backend:
    """Return an `UnslothBackend`; ConfigError if Unsloth is not installed."""
    from art_unsloth.backend import UnslothBackend

    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"backend 'unsloth' needs {' and '.join(missing)}, not installed here",
            "Run `pip install art-unsloth`. To keep an installed torch, run "
            "`pip install --no-deps unsloth unsloth_zoo` and install what it then asks for.",
        )
    return UnslothBackend(UnslothOptions(**options))


create.__signature__, create.__doc__ = inspect.signature(UnslothOptions), UnslothOptions.__doc__  # type: ignore[attr-defined]


@hookimpl
def art_backends() -> list[BackendSpec]:
    """Offer the backend `unsloth`."""
    return [
        BackendSpec(
            name="unsloth",
            create=create,
            summary="the local backend with Unsloth's models, kernels and 4-bit weights",
        )
    ]
