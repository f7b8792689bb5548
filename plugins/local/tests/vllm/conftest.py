"""Fixtures of the vLLM engine's tests: engines over the fake server."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# the helpers beside the tests are no package
sys.path.insert(0, str(Path(__file__).parent))

from vllm_helpers import FACTS, QUICK

from art_local.vllm.command import ServerSettings
from art_local.vllm.engine import VllmEngine
from art_local.vllm.server import ManagedServer
from art_local.vllm.supervisor import Timeouts


@pytest.fixture
def settings(tmp_path):
    def make(**options):
        given = {
            "model": tmp_path, "device": "cpu", "dtype": "float32", "context_length": 64,
            "max_rank": 4, "adapters": 3, "max_sequences": 8,
        }  # fmt: skip
        return ServerSettings(**{**given, **options})

    return make


@pytest.fixture
def start(settings, tmp_path, monkeypatch):
    """Starts engines over the fake server; `engine.server` is the newest process of it."""
    engines = []

    def made(
        *, wait=True, timeouts=None, sleeps=False, token_s=0.0, mute=-1, together=0, **options
    ):
        monkeypatch.setenv("FAKE_TOKEN_S", str(token_s))
        monkeypatch.setenv("FAKE_MUTE", str(mute))
        monkeypatch.setenv("FAKE_TOGETHER", str(together))
        # a CUDA device that is not there: the fake needs none
        device = "cuda:0" if sleeps else "cpu"

        def launch():
            engine.server = ManagedServer.launch(
                Path(sys.executable),
                settings(device=device, sleeps=sleeps),
                tmp_path / "run" / "vllm.log",
                module=str(Path(__file__).with_name("fake_vllm.py")),
            )
            return engine.server

        engine = VllmEngine.__new__(VllmEngine)
        engines.append(engine)
        engine.__init__(
            launch,
            FACTS,
            tmp_path / "run" / "serving",
            timeouts=Timeouts(**{**QUICK, **(timeouts or {})}),
            sleeps=sleeps,
            **options,
        )
        if wait:
            engine.wait_ready()
        return engine

    yield made
    for engine in engines:
        engine._close()
