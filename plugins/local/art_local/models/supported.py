"""Refusals of base models: one sentence with the architecture and the reason."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from art_core.base.errors import ArtError, ConfigError, EngineError
from art_local.models.device_memory import is_out_of_memory

LIBRARIES = frozenset({"torch", "transformers", "peft", "safetensors", "tokenizers"})
REMEDY = "Choose a plain decoder as base model (Llama, Qwen, Mistral, Gemma, SmolLM, ...)."


@contextmanager
def refused_unless_possible(architecture: str, what: str) -> Iterator[None]:
    """Turn what a library raises inside the block into a ConfigError that names the architecture.

    Errors of art-core, of its code and a lack of memory pass as they are.
    """
    try:
        yield
    except (ArtError, NameError):
        raise
    except Exception as error:
        if is_out_of_memory(error) or (isinstance(error, AssertionError) and _is_ours(error)):
            raise
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{architecture} cannot be {what} here: {type(error).__name__}: {reason}", REMEDY
        ) from error


def _is_ours(error: Exception) -> bool:
    """Return whether code of ours, or of a test, raised an error."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    module = str(frames[-1].f_globals.get("__name__"))
    return module.partition(".")[0] not in LIBRARIES


def cannot_serve(architecture: str, error: EngineError) -> ConfigError:
    """Return the refusal of an architecture with which the embedded engine fails."""
    return ConfigError(f"the embedded engine cannot serve {architecture}: {error.args[0]}", REMEDY)


def architecture_of(config: Any) -> str:
    """Return a config's architecture as its author named it, or its model type."""
    named = getattr(config, "architectures", None) or [None]
    return str(named[0] or getattr(config, "model_type", None) or type(config).__name__)
