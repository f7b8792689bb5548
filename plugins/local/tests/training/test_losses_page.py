"""The loss in docs/losses.md, on numbers that a reader can check by hand."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from art_core.rl.config import TrainConfig
from art_core.rl.losses import LossTokens
from art_local.training.trainer import Trainer

PAGE = Path(__file__).parents[4] / "docs" / "losses.md"


@pytest.fixture
def told(tmp_path, monkeypatch):
    text = re.search(r"```python\n# my_losses.py\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    (tmp_path / "my_losses.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "my_losses", raising=False)
    return TrainConfig(loss_fn="my_losses:gentle").loss.spec.create()


def test_the_page_tells_a_loss_that_learns_half_as_much_from_failures(told):
    logprobs = torch.tensor([-1.0, -1.0, -1.0], requires_grad=True)
    ratios = torch.tensor([1.5, 1.5, 9.0])
    same = dict.fromkeys(("old_logprobs_R", "weights_R", "sequences_R", "entropies_R"))
    losses = told(
        LossTokens(
            logprobs_R=logprobs,
            ratios_R=ratios,
            log_ratios_R=ratios.log(),
            advantages_R=torch.tensor([1.0, -1.0, -1.0]),
            **same,
        )
    )
    losses.sum().backward()
    assert logprobs.grad.tolist() == pytest.approx([-1.5, 0.75, 1.0])


@pytest.mark.parametrize("lora", [(4, 8), None], ids=["LoRA", "whole"])
def test_it_trains_by_its_import_path(told, make_policy, sequences, lora):
    trainer = Trainer(make_policy(lora=lora), progress=False)
    metrics = trainer.step(sequences, TrainConfig(loss_fn="my_losses:gentle"))
    assert metrics["data/step_num_gradient_steps"] == 1.0
    assert math.isfinite(metrics["loss/train"]) and metrics["loss/grad_norm"] > 0
