"""The contract of backends. Subclass `BackendContract` and give `make_backend`."""

from __future__ import annotations

from art_core.testing.backend.base import (
    QUESTION,
    ask,
    attempts,
    plugins_with_prices,
    registered,
    tokens,
)
from art_core.testing.backend.endpoint import BackendEndpoint
from art_core.testing.backend.learning import LearningContract
from art_core.testing.backend.lifecycle import BackendLifecycle
from art_core.testing.backend.supervised import BackendSupervised
from art_core.testing.backend.training import BackendTraining
from art_core.testing.backend.weights import BackendWeights

__all__ = [
    "QUESTION",
    "BackendContract",
    "LearningContract",
    "ask",
    "attempts",
    "plugins_with_prices",
    "registered",
    "tokens",
]


class BackendContract(
    BackendEndpoint, BackendTraining, BackendSupervised, BackendWeights, BackendLifecycle
):
    """The tests of a backend.

    Fixtures: give `make_backend`, a function that returns a new backend. `make_model` returns a
    model of the same run each time; `make_groups(model, rewards)` gathers a group through the
    model's endpoint. Override these two where a random model would not answer.
    """
