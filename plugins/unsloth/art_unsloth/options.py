"""The options of the backend, which are sent to its worker."""

from __future__ import annotations

import os
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import attrs


@attrs.frozen(kw_only=True)
class UnslothOptions:
    """Options of `art.backend("unsloth", ...)`.

    Unsloth's own:

    - `load_in_4bit`: hold the frozen base model in 4 bit (NF4); CUDA only.
    - `fast_inference`: serve with vLLM, as `engine="vllm"` does; CUDA only. None: if vLLM is
      installed.
    - `max_seq_length`: tokens that a sequence may have, in training and when served; by default the
      base model's own context length.

    Those of the local backend: `device`, `dtype`, `engine`, `engine_device`, `engine_url`,
    `engine_key`, `engine_args`, `engine_timeouts`, `gpu_cost_per_hour_usd`, `lora_rank`,
    `lora_alpha`, `activation_checkpointing` (on CUDA Unsloth's own, on unless it is False),
    `chat_template`, `seed`, `accept_changes`, `max_batch_size`, `served_steps`,
    `request_timeout_s`, `progress`.
    """

    load_in_4bit: bool = False
    fast_inference: bool | None = None
    max_seq_length: int | None = None
    device: str | None = None
    dtype: str | None = None
    engine: str = "auto"
    engine_device: str | None = None
    engine_url: str | None = None
    engine_key: str | None = attrs.field(default=None, repr=False)
    engine_args: Mapping[str, Any] | None = None
    engine_timeouts: Mapping[str, float] | None = None
    gpu_cost_per_hour_usd: float | None = None
    lora_rank: int = 16
    lora_alpha: int = 32
    activation_checkpointing: bool | str = "auto"
    chat_template: str | os.PathLike[str] | None = None
    seed: int = 0
    accept_changes: bool = False
    max_batch_size: int = 64
    served_steps: int = 2
    request_timeout_s: float = 600.0
    progress: bool = True

    def values(self) -> dict[str, Any]:
        """Return the options as JSON values; paths are strings."""
        return attrs.asdict(self, value_serializer=lambda _, __, value: _plain(value))


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return float(value) if isinstance(value, Decimal) else value
