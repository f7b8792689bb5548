"""Losses and gradients of whole steps equal those of TRL's trainer (written by trl_values.py)."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from art_core.rl.batch import token_weight
from art_core.rl.config import TrainConfig
from art_core.rl.sequences import TokenSequence
from art_local.training.policy import Policy
from art_local.training.trainer import Trainer


def _module():
    found = importlib.util.spec_from_file_location(
        "trl_values", Path(__file__).with_name("trl_values.py")
    )
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


trl_values = _module()
WRITTEN = json.loads(trl_values.FILE.read_text())


@pytest.fixture
def make_trainer():
    def make(*, lora):
        policy = Policy(
            trl_values.make_model(lora=False),
            dtype=torch.float32,
            lora=(2, 4) if lora else None,
            seed=0,
        )
        trl_values.draw_parameters(policy.trained())
        policy.refresh()
        return Trainer(policy, progress=False)

    return make


def training_sequences(case, loss):
    return [
        TokenSequence(
            token_ids=(*s["prompt"], *s["answer"]),
            trainable=(False,) * len(s["prompt"]) + (True,) * len(s["answer"]),
            logprobs=(0.0,) * len(s["prompt"]) + tuple(old),
            advantage=s["advantage"],
            weight=token_weight(loss, of_sequence=len(s["answer"]), of_trajectory=len(s["answer"])),
        )
        for s, old in zip(trl_values.sequences(), case["old_logprobs"], strict=True)
    ]


def test_the_values_are_those_of_the_release_that_is_named():
    assert WRITTEN["versions"]["trl"] == "1.16.0"
    assert len(WRITTEN["cases"]) == 2 * len(trl_values.CASES)


@pytest.mark.parametrize("budget", [24, 1024], ids=["split", "whole"])
@pytest.mark.parametrize("case", WRITTEN["cases"])
def test_a_step_has_the_loss_and_the_gradient_of_trls_trainer(make_trainer, case, budget):
    name, kind = case.split(", ")
    trainer, written = make_trainer(lora=kind == "LoRA"), WRITTEN["cases"][case]
    config = TrainConfig(**trl_values.CASES[name]["ours"], micro_batch_tokens=budget)
    gradients = {}

    def keep(*_):
        moved = trainer.policy.trained().items()
        gradients.update({n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in moved})
        return 0.0

    trainer.optimizer.step = keep
    metrics = trainer.step(training_sequences(written, config.loss), config)
    assert metrics["loss/train"] == pytest.approx(written["loss"], abs=1e-4, rel=1e-4)
    found = trl_values.prints(gradients)
    assert found.keys() == written["gradients"].keys()
    scale = max(values[0] for values in written["gradients"].values())
    for parameter, values in written["gradients"].items():
        assert found[parameter] == pytest.approx(values, rel=1e-4, abs=1e-4 * scale), parameter
