"""The options of the local backend, declared and checked in one place."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import attrs

from art_core.rl.config import Check, cap, count, optional, price
from art_local.training.checkpointing import AUTO, check_mode


def _checked(check: Check, default: Any) -> Any:
    def validate(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        check(attribute.name, value)

    return attrs.field(default=default, validator=validate)


@attrs.frozen(kw_only=True)
class LocalOptions:
    """Options of `art.backend("local", ...)`.

    - `device`: "cpu", "cuda", "cuda:1", ...; by default a CUDA device if there is one.
    - `dtype`: "bfloat16" or "float32"; by default bf16 where the hardware multiplies it.
    - `engine`: "transformers" (embedded), "vllm" (a server process), or "auto": vLLM if it is
      installed for the engine's kind of device and LoRA is trained, else transformers.
    - `engine_device`: the device of vLLM, by default the trainer's. `engine_url`, `engine_key`: a
      vLLM server that runs already. It must allow loading LoRA at runtime and see the run's
      directory.
    - `engine_args`: further arguments of vLLM's server by name. `engine_timeouts`: see
      `art_local.vllm.supervisor.Timeouts`.
    - `gpu_cost_per_hour_usd`: price of the device (on a CPU: of the machine) for `costs/gpu`; by
      default the price plugins' price of the CUDA device.
    - `lora_rank`, `lora_alpha`: the adapter on all linear layers; `full_finetune` trains all
      weights instead.
    - `activation_checkpointing`: True computes each layer again in the backward pass instead of
      storing its activations; by default ("auto") a step does so if the activations of its longest
      sequence do not fit in the free memory.
    - `chat_template`: for base models without one, or instead of their own: the template's text, or
      the path of a jinja file. Checkpoints contain it.
    - `seed`: of the adapter's initial weights. `max_batch_size`: sequences sampled together.
    - `context_length`: of the served models; by default the base model's own.
    - `served_steps`: steps whose weights stay in memory for `name@step`, by default the newest and
      the one before; others are loaded on request.
    - `request_timeout_s`: of one request to the endpoint.
    - `progress`: show progress bars.

    Raises ConfigError for an invalid value.
    """

    device: str | None = None
    dtype: str | None = None
    engine: str = "auto"
    engine_device: str | None = None
    engine_url: str | None = None
    engine_key: str | None = attrs.field(default=None, repr=False)
    engine_args: Mapping[str, Any] | None = None
    engine_timeouts: Mapping[str, float] | None = None
    gpu_cost_per_hour_usd: float | None = _checked(optional(price), None)
    lora_rank: int = _checked(count, 16)
    lora_alpha: int = _checked(count, 32)
    full_finetune: bool = False
    activation_checkpointing: bool | str = _checked(lambda _, mode: check_mode(mode), AUTO)
    chat_template: str | os.PathLike[str] | None = None
    seed: int = 0
    max_batch_size: int = _checked(count, 64)
    context_length: int | None = _checked(optional(count), None)
    served_steps: int = _checked(count, 2)
    request_timeout_s: float = _checked(cap, 600.0)
    progress: bool = True
