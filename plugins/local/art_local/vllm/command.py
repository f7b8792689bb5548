"""The command line and environment variables of vLLM's server."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from art_core.base.errors import ConfigError
from art_local.engine.protocol import BASE
from art_local.threads import WAIT_ASLEEP

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values above 1 that vLLM's --max-lora-rank accepts."""
OWN = ("api_key", "enable_lora", "enable_sleep_mode", "host", "model", "port", "served_model_name")
"""Arguments that the backend sets itself."""


@attrs.frozen(kw_only=True)
class ServerSettings:
    """The settings of one server.

    `device` is "cpu" or "cuda:<index>" as this process counts devices; `devices` are all that one
    server uses: by tensor parallelism, unless `extra` asks for data or pipeline parallelism.
    `sleeps` means that the server shares the trainer's CUDA device and frees its memory during
    training. `extra` are further arguments of vLLM's server by name.
    """

    model: Path
    device: str
    dtype: str
    context_length: int
    max_rank: int
    adapters: int
    max_sequences: int
    devices: tuple[str, ...] = ()
    memory_share: float | None = None
    sleeps: bool = False
    extra: Mapping[str, Any] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        reserved = sorted({name.replace("-", "_") for name in self.extra} & set(OWN))
        if reserved:
            raise ConfigError(f"engine_args can't set {reserved[0]!r}", "The backend sets it.")
        if self.max_rank > RANKS[-1]:
            raise ConfigError(
                f"vLLM serves LoRA up to rank {RANKS[-1]}, got lora_rank={self.max_rank}"
            )


def arguments(settings: ServerSettings, port: int) -> list[str]:
    """Return the arguments of `python -m vllm.entrypoints.openai.api_server`."""
    values: dict[str, Any] = {
        "model": settings.model,
        "served_model_name": BASE,
        "host": "127.0.0.1",
        "port": port,
        "dtype": settings.dtype,
        "max_model_len": settings.context_length,
        "max_num_seqs": settings.max_sequences,
        "enable_lora": True,
        "max_lora_rank": next(rank for rank in RANKS if rank >= settings.max_rank),
        "max_loras": min(settings.adapters, 4),
        "max_cpu_loras": 2 * settings.adapters,
        # the library that writes the grammars and computes their masks in training
        "structured_outputs_config": {"backend": "guidance"},
        # unscaled log-probs, and no sampling defaults of the model's author
        "logprobs_mode": "raw_logprobs",
        "generation_config": "vllm",
        "disable_uvicorn_access_log": True,
        # reports the cached tokens of a prompt
        "enable_prompt_tokens_details": True,
    }
    if settings.device == "cpu":
        values["enforce_eager"] = True
    if settings.memory_share is not None:
        values["gpu_memory_utilization"] = round(settings.memory_share, 3)
    if settings.sleeps:
        values["enable_sleep_mode"] = True
    if len(settings.devices) > 1:
        values["tensor_parallel_size"] = _tensor_parallel(settings)
    values |= {name.replace("-", "_"): value for name, value in settings.extra.items()}
    return [word for name, value in values.items() for word in _words(name, value)]


def _tensor_parallel(settings: ServerSettings) -> int:
    """Return over how many devices a layer is split: all that data or pipeline parallelism leaves.

    Raises ConfigError for sizes whose product is not the number of devices.
    """
    given = {name.replace("-", "_"): value for name, value in settings.extra.items()}
    sizes = [int(given.get(f"{kind}_parallel_size", 1)) for kind in ("data", "pipeline")]
    others, count = sizes[0] * sizes[1], len(settings.devices)
    size = int(given.get("tensor_parallel_size", max(1, count // others)))
    if size * others != count:
        raise ConfigError(
            f"engine_args ask for {size} x {others} devices by tensor and other parallelism, and "
            f"engine_devices are {count}",
            "Leave tensor_parallel_size out, or name as many devices.",
        )
    return size


def _words(name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if value is True:
        return [flag]
    if value is False:
        return [flag.replace("--", "--no-", 1)]
    if isinstance(value, Mapping):
        return [flag, json.dumps(value)]
    if isinstance(value, (list, tuple)):
        return [flag, *map(str, value)]
    return [] if value is None else [flag, str(value)]


def environment(settings: ServerSettings, api_key: str, base: Mapping[str, str]) -> dict[str, str]:
    """Return the server's environment: this process's, without the variables of its own Python."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    env = {name: value for name, value in base.items() if name not in hidden}
    env |= {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        # other users of the machine could read a key in the arguments
        "VLLM_API_KEY": api_key,
    }
    if settings.device == "cpu":
        env = {**_cpu_defaults(), **env}
    else:
        outer = base.get("CUDA_VISIBLE_DEVICES")
        named = settings.devices or (settings.device,)
        env["CUDA_VISIBLE_DEVICES"] = ",".join(_visible(each, outer) for each in named)
    if settings.sleeps:
        env["VLLM_SERVER_DEV_MODE"] = "1"
    return env


def _cpu_defaults() -> dict[str, str]:
    """Return defaults for a server that shares its cores with a trainer; the user's own win."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        # bound to cores, servers of several jobs would use the same ones
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(cores or 1),
        **WAIT_ASLEEP,
    }


def _visible(device: str, outer: str | None) -> str:
    index = int(device.partition(":")[2] or 0)
    known = [name.strip() for name in outer.split(",")] if outer else []
    return known[index] if index < len(known) else str(index)
