"""The optimizer's state by parameter name, as a checkpoint stores it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from art_core.base.errors import BackendError
from art_local.training.optimizer import Optimizer

SOURCE = Path("a checkpoint")


def two_parameters():
    return {"used": nn.Parameter(torch.ones(2)), "never used": nn.Parameter(torch.ones(3))}


def stepped(optimizer, parameters):
    parameters["used"].grad = torch.tensor([1.0, -1.0])
    optimizer.step(0.1, 1.0)
    return parameters["used"].detach().clone()


def test_a_parameter_that_never_had_a_gradient_has_no_state_and_is_resumed_without():
    mine = two_parameters()
    optimizer = Optimizer(mine)
    stepped(optimizer, mine)
    stored = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    assert set(stored) == {"exp_avg.used", "exp_avg_sq.used", "step.used"}

    other = two_parameters()
    other["used"].data.copy_(mine["used"])
    resumed = Optimizer(other)
    resumed.load(stored, SOURCE)
    assert torch.equal(stepped(resumed, other), stepped(optimizer, mine))


@pytest.mark.parametrize(
    "stored",
    [
        {f"{kind}.other": torch.ones(2) for kind in ("exp_avg", "exp_avg_sq", "step")},
        {f"{kind}.used": torch.ones(5) for kind in ("exp_avg", "exp_avg_sq", "step")},
    ],
)
def test_a_state_of_another_model_is_refused(stored):
    with pytest.raises(BackendError, match="is not that of this model"):
        Optimizer(two_parameters()).load(stored, SOURCE)


def test_no_state_starts_afresh():
    mine = two_parameters()
    optimizer = Optimizer(mine)
    stepped(optimizer, mine)
    optimizer.load({}, SOURCE)
    assert optimizer.state() == {}
