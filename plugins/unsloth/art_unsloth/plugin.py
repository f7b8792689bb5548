"""What art-unsloth offers to art-core. Nothing heavy is imported in this process, ever: Unsloth and
torch live in a worker.
"""

from __future__ import annotations

import importlib.util
import inspect
from typing import Any

from art_core import Backend, BackendSpec, ConfigError, hookimpl
from art_unsloth.options import Options

NEEDED = ("unsloth", "unsloth_zoo")


def create(**options: Any) -> Backend:
    """Make an `UnslothBackend`; ConfigError where Unsloth is not installed."""
    from art_unsloth.backend import UnslothBackend

    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"backend 'unsloth' needs {' and '.join(missing)}, not installed here",
            "Run `pip install art-unsloth`; beside a torch that is to stay as it is, "
            "`pip install --no-deps unsloth unsloth_zoo` and what it then asks for.",
        )
    return UnslothBackend(Options(**options))


create.__signature__, create.__doc__ = inspect.signature(Options), Options.__doc__  # type: ignore[attr-defined]


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
