"""A Tinker service in this process, and models that use it."""

from __future__ import annotations

import pytest
import tinker

import art_core as art
from art_core.testing.backend import plugins_with_prices

PRICES = {"prompt_per_million": 1.0, "completion_per_million": 3.0, "train_per_million": 5.0}


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory):
    from art_local.testing.tiny import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def account(tiny_directory, monkeypatch):
    """An account at the service, which `tinker.ServiceClient` leads to."""
    from art_tinker.testing.fake import FakeTinker

    account = FakeTinker(tiny_directory)
    monkeypatch.setattr("tinker.ServiceClient", account.service)
    if hasattr(tinker, "RestClient"):
        monkeypatch.setattr("tinker.RestClient", account.rest)
    monkeypatch.setenv("TINKER_API_KEY", "tml-a-key-of-the-tests")
    return account


@pytest.fixture
def make_model(tmp_path):
    """Open a run: `make_model(name)`; a million tokens cost $1 to prefill, $3 to sample, $5 to
    train on.
    """

    def make(name="agent", base_model="tiny/base", **fields):
        model = art.TrainableModel(
            name=name,
            project="demo",
            base_model=base_model,
            base_path=tmp_path,
            sinks=[],
            plugins=plugins_with_prices(),
            **fields,
        )
        model.metrics_builder().register_model_pricing("tiny/base", **PRICES)
        return model

    return make
