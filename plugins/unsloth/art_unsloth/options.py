"""The options of the backend, which are sent to its worker."""

from __future__ import annotations

import os
from decimal import Decimal
from typing import Any

import attrs

from art_local.options import SharedOptions


@attrs.frozen(kw_only=True)
class UnslothOptions(SharedOptions):
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
    `chat_template`, `seed`, `deterministic` (refused on CUDA), `accept_changes`, `max_batch_size`,
    `served_steps`, `request_timeout_s`, `progress`.
    """

    load_in_4bit: bool = False
    fast_inference: bool | None = None
    max_seq_length: int | None = None

    def values(self) -> dict[str, Any]:
        """Return the options as JSON values; paths are strings."""
        return attrs.asdict(self, value_serializer=lambda _, __, value: _plain(value))


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return float(value) if isinstance(value, Decimal) else value
