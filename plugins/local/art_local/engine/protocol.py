"""The protocol of the backend's engines: sampling, and loading each step's weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import attrs
import torch

from art_core.endpoint.engine import ImageEngine, ScoringEngine
from art_local.images.reader import ImageReader

BASE = "base"
"""The name by which an engine serves the base model."""


@attrs.frozen(kw_only=True)
class StepWeights:
    """The weights of a step, computed on demand in the form that an engine needs.

    - `merged` returns the parameters that differ from the base model's, by name.
    - `write` writes a peft adapter (its config and safetensors) into a directory.
    """

    merged: Callable[[], Mapping[str, torch.Tensor]]
    write: Callable[[Path], None]


class LocalEngine(ScoringEngine, ImageEngine, Protocol):
    """An engine that the backend owns. Methods other than `generate`, `score` and `close` are
    called from the backend's training thread and block it.
    """

    name: str
    is_rounded: bool
    """Whether it samples with other weights than the trainer's on purpose: rounded ones."""
    images_refused: str | None
    """Why prompts have no images; None if they may have some."""

    def read_images(self, reader: ImageReader, /) -> None:
        """Take images in prompts. Called only if `images_refused` was None."""

    def publish(self, adapter: str, weights: StepWeights) -> None:
        """Serve weights under an adapter's name to new requests.

        Raises EngineError if the engine does not accept them.
        """

    def unload(self, adapter: str) -> None:
        """Stop serving an adapter; running requests finish."""

    def asleep(self) -> AbstractContextManager[Any]:
        """Free the memory of a device shared with the trainer, inside the block."""

    def check(self) -> None:
        """Raise EngineError with the reason if the engine has ended."""

    def step_metrics(self) -> dict[str, float]:
        """Return the engine's measurements since the last call, under `throughput/engine_*`."""
