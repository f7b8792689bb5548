"""The contracts of backends and plugin modules, for Tinker's."""

from __future__ import annotations

from typing import ClassVar

import pytest

import art_core as art
from art_core.testing.backend import BackendContract
from art_core.testing.plugin import PluginContract


class TestTinker(BackendContract):
    base_model: ClassVar = "tiny/base"
    charged: ClassVar = "costs/train/tinker_train"

    @pytest.fixture
    def make_backend(self, account):
        return lambda: art.backend("tinker")

    @pytest.fixture
    def make_model(self, make_model):
        return make_model


class TestPlugin(PluginContract):
    module = "art_tinker.plugin"
    heavy = ("numpy", "pydantic", "tinker", "torch", "transformers")
