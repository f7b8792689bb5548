"""The contract of backends, for the real Unsloth in a worker process."""

from __future__ import annotations

from typing import ClassVar

import pytest

from art_core.testing.backend import BackendContract
from art_core.testing.plugin import PluginContract


@pytest.mark.torch
class TestUnslothBackend(BackendContract):
    train_options: ClassVar = {"mask_truncated": False, "learning_rate": 1e-3}

    @pytest.fixture(autouse=True)
    def _tiny(self, tiny_directory, monkeypatch):
        monkeypatch.setattr(type(self), "base_model", str(tiny_directory))

    @pytest.fixture
    def make_backend(self, unsloth_backend):
        return unsloth_backend


class TestPlugin(PluginContract):
    module = "art_unsloth.plugin"
    heavy = (*PluginContract.heavy, "art_local.backend", "peft", "unsloth", "unsloth_zoo")
