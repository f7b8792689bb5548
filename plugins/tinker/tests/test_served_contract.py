"""The contract of backends, with real weights: the real SDK against `art serve --api tinker`."""

from __future__ import annotations

import gc
from typing import ClassVar

import pytest
from tinker_server import KEY, tinker_server

import art_core as art
from art_core.testing.backend import BackendContract

pytestmark = [
    pytest.mark.torch,
    pytest.mark.timeout(300),
    # the SDK leaves the connection open over which it asked for its settings
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def connections_that_the_sdk_left_open_are_collected():
    yield
    gc.collect()


@pytest.fixture(scope="module")
def served(tiny_directory, tmp_path_factory):
    place = tmp_path_factory.mktemp("served")
    with tinker_server(place, {"tiny/base": str(tiny_directory)}, "--max-models", "64") as server:
        yield server


class TestTinkerOnArtServe(BackendContract):
    base_model: ClassVar = "tiny/base"
    charged: ClassVar = "costs/train/tinker_train"

    @pytest.fixture
    def make_backend(self, served, tiny_directory):
        def make():
            return art.backend(
                "tinker", base_url=served.url, api_key=KEY, lora_rank=8,
                tokenizer=str(tiny_directory),
            )  # fmt: skip

        return make

    @pytest.fixture
    def make_model(self, make_model):
        return make_model
