"""What the tests share: a tiny model on disk, and worker processes that serve one test after
another, since each takes seconds to import Unsloth.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import art_core as art
from art_core.testing.backend import plugins_with_prices
from art_unsloth.backend import UnslothBackend
from art_unsloth.channel import Worker
from art_unsloth.options import Options

SMALL = {"device": "cpu", "lora_rank": 4, "lora_alpha": 8, "progress": False}


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory) -> Path:
    from art_local.testing.tiny import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def installed():
    if importlib.util.find_spec("unsloth") is None:
        pytest.skip("Unsloth is not installed: pip install --no-deps unsloth unsloth_zoo")


class Workers:
    """Gives out workers; one that a backend ended goes to the next."""

    def __init__(self):
        self.idle: list[Worker] = []
        self.made: list[Worker] = []

    def __call__(self, news):
        while self.idle:
            worker = self.idle.pop()
            if worker.death is None:
                worker.news = news
                return worker
        supply = self

        class Kept(Worker):
            def end(self, timeout=30.0):
                supply.idle.append(self)

        worker = Kept(news)
        self.made.append(worker)
        return worker


@pytest.fixture(scope="session")
def workers(installed):
    supply = Workers()
    yield supply
    for worker in supply.made:
        Worker.end(worker)


@pytest.fixture
def unsloth_backend(workers):
    """Make a backend on a worker that is there already: `unsloth_backend(**options)`."""

    def make(**options):
        given = {**SMALL, "gpu_cost_per_hour_usd": 1.0, **options}
        return UnslothBackend(Options(**given), start=workers)

    return make


@pytest.fixture
def tiny_model(tmp_path, tiny_directory):
    """Open a run over the tiny model: `tiny_model(name)`."""

    def make(name="agent"):
        return art.TrainableModel(
            name=name,
            project="unsloth",
            base_model=str(tiny_directory),
            base_path=tmp_path,
            sinks=[],
            plugins=plugins_with_prices(),
        )

    return make
