"""What the backend asks of an engine of its own, beyond sampling: to take each step's weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import attrs
import torch

from art_core.endpoint.engine import Engine

BASE = "base"
"""The name by which an engine serves the base model."""


@attrs.frozen(kw_only=True)
class StepWeights:
    """The weights of a step, in whichever form an engine takes: made when it asks.

    - `merged` returns the base model's parameters that differ, by their names, as they are served.
    - `write` writes peft's adapter (its config and safetensors) into a directory.
    """

    merged: Callable[[], Mapping[str, torch.Tensor]]
    write: Callable[[Path], None]


class LocalEngine(Engine, Protocol):
    """An engine that the backend owns. All but `generate` and `close` is called from the backend's
    training thread, and waits until it is done.
    """

    name: str

    def publish(self, adapter: str, weights: StepWeights) -> None:
        """Serve weights under an adapter's name, to requests that come from now on.

        Raises EngineError when the engine does not take them.
        """

    def unload(self, adapter: str) -> None:
        """Stop serving an adapter; requests under way finish."""

    def asleep(self) -> AbstractContextManager[Any]:
        """Free what the trainer needs of a shared device, inside the block."""

    def check(self) -> None:
        """Raise EngineError when the engine has ended for good, with the reason."""

    def step_metrics(self) -> dict[str, float]:
        """Return what the engine measured since the last call, under `throughput/engine_*`."""
