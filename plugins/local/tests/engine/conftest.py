"""Fixtures of the embedded engine's tests: a random model, and an engine over it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# the helpers beside the tests are no package
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def model(tiny_directory):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_directory)


@pytest.fixture
async def engine(model):
    from art_local.engine import TransformersEngine

    made = TransformersEngine(model, request_timeout_s=20)
    yield made
    await made.close()
