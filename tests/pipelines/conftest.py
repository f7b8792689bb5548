"""A model of an echo whose training waits for what a test decides."""

from __future__ import annotations

import pytest
from pipelined import WaitingBackend

import art_core as art


@pytest.fixture(autouse=True)
def _alone(no_open_models: None) -> None:
    pass


@pytest.fixture
def backend() -> WaitingBackend:
    return WaitingBackend()


@pytest.fixture
async def model(tmp_path, backend):
    made = art.TrainableModel(
        name="m", project="p", base_model="echo", base_path=tmp_path, backend=backend, sinks=[]
    )
    yield made
    await made.close()
    await backend.close()
