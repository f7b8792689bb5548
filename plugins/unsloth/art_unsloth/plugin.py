"""What art-unsloth offers to art-core. Nothing heavy is imported in this process, ever: Unsloth and
torch live in a worker.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import attrs

from art_core import Backend, BackendSpec, ConfigError, hookimpl
from art_core.errors import unknown

NEEDED = ("unsloth", "unsloth_zoo")


def create(**options: Any) -> Backend:
    """Make an `UnslothBackend`; its options are the fields of `art_unsloth.options.Options`.

    Raises ConfigError for an unknown option, and where Unsloth is not installed.
    """
    from art_unsloth.backend import UnslothBackend
    from art_unsloth.options import Options

    known = [field.name for field in attrs.fields(Options)]
    for option in options:
        if option not in known:
            raise ConfigError(unknown("backend 'unsloth' option", option, known))
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"backend 'unsloth' needs {' and '.join(missing)}, not installed here",
            "Run `pip install art-unsloth`; beside a torch that is to stay as it is, "
            "`pip install --no-deps unsloth unsloth_zoo` and what it then asks for.",
        )
    return UnslothBackend(Options(**options))


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
