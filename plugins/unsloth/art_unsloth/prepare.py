"""The first heavy import of the worker: Unsloth, which changes transformers as it comes."""

from __future__ import annotations

import os
import sys

from art_core import ConfigError


def import_unsloth(device: str | None) -> None:
    """Import Unsloth for a device (None: its own choice); ConfigError with its reason where it does
    not let itself be imported.
    """
    from art_local.models import cache_directory
    from art_local.plugin import wait_asleep

    if sys.platform == "darwin":
        raise ConfigError(
            "on a Mac Unsloth trains models of MLX, and this backend those of torch",
            "Use the backend 'local'.",
        )
    wait_asleep()
    # what it writes for itself is no business of the working directory, nor of anybody elsewhere
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    os.environ.setdefault(
        "UNSLOTH_COMPILE_LOCATION", str(cache_directory() / "unsloth_compiled_cache")
    )
    if device == "cpu":
        os.environ["UNSLOTH_FORCE_CPU"] = "1"
    try:
        import unsloth  # noqa: F401
    except (ImportError, NotImplementedError, RuntimeError) as error:
        raise ConfigError(
            f"Unsloth is installed and does not let itself be imported: {error}",
            "`python -c 'import unsloth'` shows the whole story.",
        ) from error
