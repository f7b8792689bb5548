"""The local backend keeps what every backend promises; so does its plugin module."""

from __future__ import annotations

from typing import ClassVar

import pytest

import art_core as art
from art_core.testing.backend import BackendContract, LearningContract
from art_core.testing.plugin import PluginContract


class TestLocalBackend(BackendContract):
    train_options: ClassVar = {"mask_truncated": False, "learning_rate": 1e-3}

    @pytest.fixture
    def make_backend(self):
        return lambda: art.backend(
            "local",
            device="cpu",
            lora_rank=4,
            lora_alpha=8,
            gpu_cost_per_hour_usd=1.0,
            progress=False,
        )

    @pytest.fixture(autouse=True)
    def _tiny(self, tiny_directory, monkeypatch):
        monkeypatch.setattr(type(self), "base_model", str(tiny_directory))


class TestLearning(LearningContract):
    train_options: ClassVar = {
        "mask_truncated": False,
        "learning_rate": 1e-2,
        "save_checkpoint": False,
    }
    learning_steps = 7

    @pytest.fixture
    def make_backend(self):
        options = {"device": "cpu", "dtype": "float32", "full_finetune": True, "progress": False}
        return lambda: art.backend("local", **options)

    @pytest.fixture(autouse=True)
    def _tiny(self, tiny_directory, monkeypatch):
        monkeypatch.setattr(type(self), "base_model", str(tiny_directory))

    def reward(self, choice):
        """The share of lower-case letters."""
        return sum(ord("a") <= token <= ord("z") for token in choice.token_ids) / 8


class TestPlugin(PluginContract):
    module = "art_local.plugin"
