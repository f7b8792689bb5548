"""The contract of backends, on a Ray cluster of one node."""

from __future__ import annotations

from typing import ClassVar

import pytest

import art_core as art
from art_core.testing.backend import BackendContract


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.timeout(900)
class TestRayBackend(BackendContract):
    train_options: ClassVar = {"mask_truncated": False, "learning_rate": 1e-3}

    @pytest.fixture(autouse=True)
    def _tiny(self, one_node, tiny_directory, monkeypatch):
        monkeypatch.setattr(type(self), "base_model", str(tiny_directory))

    @pytest.fixture
    def make_backend(self):
        return lambda: art.backend(
            "ray",
            trainer={"num_cpus": 0.5},
            engines={"num_cpus": 0.5, "replicas": 1},
            device="cpu",
            lora_rank=4,
            lora_alpha=8,
            gpu_cost_per_hour_usd=1.0,
            progress=False,
        )
