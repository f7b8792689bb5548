"""`art serve --api tinker` in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager

import attrs

KEY = "tml-a-key-of-the-tests"


@attrs.define
class TinkerServer:
    """A running server: its URL and its process."""

    url: str
    process: subprocess.Popen


@contextmanager
def tinker_server(directory, base_models, *arguments, port=0):
    """Start a server over `base_models`, paths by name; end it when the block ends."""
    options = ["device=cpu", "dtype=float32", "progress=False", "gpu_cost_per_hour_usd=3600"]
    command = [
        *(sys.executable, "-m", "art_core", "serve", "--api", "tinker"),
        *("--dir", str(directory), "--port", str(port)),
        *(word for option in options for word in ("-o", option)),
        *(word for pair in base_models.items() for word in ("--base-model", "=".join(pair))),
        *arguments,
    ]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "ART_API_KEY": KEY, "PYTHONUNBUFFERED": "1"},
    ) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith("serving"), line
            yield TinkerServer(line.split(" at ")[1].split(";")[0], process)
        finally:
            process.terminate()
            process.wait(60)
