"""A vLLM server with adapters, for tests and benchmarks of the LoRA operations we put into it."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from art_local.threads import WAIT_ASLEEP
from art_local.vllm.install import Environment
from art_local.vllm.server import ServerProcess, free_port

START_TIMEOUT_S = 300.0
ANSWER_TIMEOUT_S = 300.0
SETTINGS = {
    **WAIT_ASLEEP,
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
}
STOCK = {"VLLM_PLUGINS": ""}
"""Keeps our plugin, and every other, out of the server."""
PLUGIN_SAYS = "LoRA on CPU: one matrix product an adapter"


def save_random_adapter(model: Path, directory: Path, *, seed: int, rank: int = 8) -> Path:
    """Write a LoRA adapter of all linear layers whose B is not zero, so that it changes answers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from art_local.models.load import silence_logs

    with silence_logs(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
        adapted = get_peft_model(base, config)
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.02)
        adapted.save_pretrained(directory)
    return directory


@contextmanager
def lora_server(
    environment: Environment,
    model: Path,
    *,
    log_file: Path,
    dtype: str,
    env: Mapping[str, str],
    options: Sequence[str] = (),
) -> Iterator[str]:
    """Start a CPU server whose model `base` takes two adapters; yield its address; end it.

    Raises RuntimeError with the end of its log when it stops or is not ready in time.
    """
    port = free_port()
    address = f"http://127.0.0.1:{port.getsockname()[1]}"
    command = [str(environment.python), "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(model), "--served-model-name", "base", "--dtype", dtype]
    command += ["--host", "127.0.0.1", "--port", address.rpartition(":")[2]]
    command += ["--max-model-len", "2048", "--enforce-eager", "--enable-lora", *options]
    command += ["--max-lora-rank", "16", "--max-loras", "2"]
    server = ServerProcess.start(command, {**os.environ, **SETTINGS, **env}, log_file)
    try:
        _wait_until_ready(server, address)
        yield address
    finally:
        server.stop()
        port.close()


def _wait_until_ready(server: ServerProcess, address: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and server.exit_reason is None:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):  # noqa: S310 - loopback
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    state = server.exit_reason or f"it was not ready within {START_TIMEOUT_S:.0f} s"
    raise RuntimeError(f"no vLLM server: {state}; its log ends: {server.crash_report}")


def ask(address: str, path: str, body: Mapping[str, Any]) -> Any:
    """Send JSON and return what comes back: JSON, or the text where it is none."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(address + path, json.dumps(body).encode(), headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=ANSWER_TIMEOUT_S) as response:  # noqa: S310
        text = response.read().decode()
    return json.loads(text) if text.startswith("{") else text


def load_adapter(address: str, name: str, directory: Path) -> None:
    """Have an adapter answer under a name."""
    ask(address, "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(directory)})
