"""The worker's first heavy import: Unsloth, which changes transformers when it is imported."""

from __future__ import annotations

import os
import sys

from art_core import ConfigError


def import_unsloth(device: str | None) -> None:
    """Import Unsloth for a device (None: Unsloth's choice); ConfigError with the reason if the
    import fails.
    """
    from art_local.models import cache_directory
    from art_local.torch_environment import set_torch_environment

    if sys.platform == "darwin":
        raise ConfigError(
            "on a Mac Unsloth trains MLX models, and this backend trains torch models",
            "Use the backend 'local'.",
        )
    set_torch_environment()
    # No statistics are sent, and compiled files do not go to the working directory.
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
            f"Unsloth is installed and cannot be imported: {error}",
            "`python -c 'import unsloth'` shows the whole error.",
        ) from error
