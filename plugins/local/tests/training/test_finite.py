"""A step whose weights are of no use does not count."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from art_core.base.errors import BackendError
from art_core.rl.config import TrainConfig
from art_local.training.finite import not_finite
from art_local.training.trainer import Trainer


def test_tensors_with_nan_or_infinity_are_named():
    values = {
        "whole": torch.ones(3),
        "empty": torch.ones(0),
        "nan": torch.tensor([1.0, math.nan, 2.0]),
        "infinite": torch.tensor([[1.0], [-math.inf]], dtype=torch.bfloat16),
        "large": torch.full((9,), 1e18),
        "too large": torch.full((9,), -2e19),
    }
    assert not_finite(values) == ["nan", "infinite", "too large"]
    assert not_finite(values, 3e38) == ["nan", "infinite"]


@pytest.mark.parametrize(
    ("kind", "rate", "problem"),
    [
        ({}, 1e30, "weights, 'base_model"),
        ({}, 1e16, "served weights, 'model"),
        ({"lora": (4, 10**9), "merged": False}, 1e17, "the log-probs of the new weights"),
        ({"lora": None}, 1e30, "weights, 'model"),
        ({"lora": None, "dtype": torch.bfloat16}, 1e30, "weights, 'model"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_weights_that_are_of_no_use_are_taken_back(make_policy, sequences, kind, rate, problem):
    policy = make_policy(**kind)
    trainer = Trainer(policy, progress=False)
    trainer.step(sequences, TrainConfig())
    before = {name: p.detach().clone() for name, p in policy.trained().items()}
    state, serving = trainer.optimizer.state(), policy.serving
    state = {name: tensor.clone() for name, tensor in state.items()}
    with pytest.raises(BackendError, match=rf"does not count: .*{problem}.*learning_rate"):
        trainer.step(sequences, TrainConfig(learning_rate=rate))
    assert all(torch.equal(before[name], p) for name, p in policy.trained().items())
    assert policy.serving is serving
    found = trainer.optimizer.state()
    assert all(torch.equal(state[name], found[name]) for name in state)
    assert trainer.step(sequences, TrainConfig())["data/step_num_gradient_steps"] == 1.0


def test_moments_that_overflow_are_no_step(make_policy, sequences):
    trainer = Trainer(make_policy(), progress=False)
    trainer.step(sequences, TrainConfig())
    moments = trainer.optimizer.moments()
    name = next(name for name in moments if name.startswith("exp_avg_sq"))
    moments[name].fill_(math.inf)
    with pytest.raises(BackendError, match="optimizer moments"):
        trainer.step(sequences, TrainConfig())


def test_an_error_of_putting_weights_back_does_not_hide_why(make_policy, sequences, monkeypatch):
    policy = make_policy()

    def failing(kept):
        raise RuntimeError("no memory for it")

    monkeypatch.setattr(policy, "put_back", failing)
    with pytest.raises(BackendError, match="does not count") as caught:
        Trainer(policy, progress=False).step(
            sequences, TrainConfig(learning_rate=1e30, grad_accumulation_sequences=6)
        )
    assert "no memory for it" in caught.value.__notes__[0]


def test_stored_weights_that_are_not_finite_are_refused(make_policy):
    policy = make_policy()
    stored = {name: p.detach().clone() for name, p in policy.trained().items()}
    name = next(iter(stored))
    stored[name][0, 0] = math.nan
    with pytest.raises(BackendError, match=r"1 of \d+ parameters are not finite.*step="):
        policy.load(stored, Path("0007"))
    assert torch.isfinite(policy.trained()[name]).all()
