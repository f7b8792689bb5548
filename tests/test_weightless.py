"""Importing the core or a plugin module loads no heavy package."""

from __future__ import annotations

import importlib.metadata
import os
import statistics
import subprocess
import sys

import pytest

HEAVY = {
    "torch", "openai", "wandb", "pydantic", "transformers", "starlette", "uvicorn", "peft", "numpy",
    "matplotlib", "mlflow", "plotext", "tensorboard", "tinker", "trackio", "unsloth", "vllm",
    "httpx2", "genai_prices", "pyarrow", "mcp", "anyio",
}  # fmt: skip
PLUGIN_MODULES = sorted({e.module for e in importlib.metadata.entry_points(group="art_core")})
IMPORT_MS = 60.0
SLACK = 1.5 if os.environ.get("CI") else 1.0


def in_a_fresh_interpreter(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def loaded_by(statement: str) -> set[str]:
    return set(in_a_fresh_interpreter(f"import sys; {statement}; print(*sys.modules)").split())


def test_importing_the_core_loads_nothing_heavy():
    assert not loaded_by("import art_core") & HEAVY


def test_the_plugin_host_loads_nothing_heavy():
    code = "from art_core import Plugins; Plugins.discover().backends()"
    assert not loaded_by(code) & HEAVY


def test_the_local_plugin_is_looked_at():
    assert "art_local.plugin" in PLUGIN_MODULES


@pytest.mark.parametrize("module", PLUGIN_MODULES)
def test_importing_a_plugin_module_loads_nothing_heavy(module: str):
    assert not loaded_by(f"import {module}") & HEAVY


def test_importing_the_core_takes_at_most_60_ms_above_bare_python():
    # Processor time, so that whatever else runs on the machine does not count.
    code = "import time; t = time.process_time(); import art_core; print(time.process_time() - t)"
    times = [1e3 * float(in_a_fresh_interpreter(code)) for _ in range(7)]
    assert statistics.median(times) <= IMPORT_MS * SLACK
