"""Optimizers by name: AdamW with moments of 8 bits, Muon; and what changing them means."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from art_core.base.errors import BackendError, ConfigError
from art_core.rl.config import TrainConfig
from art_local.training.optimizer import Optimizer
from art_local.training.trainer import Trainer

SOURCE = Path("a checkpoint")
MUON = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon since 2.9")


def parameters():
    generator = torch.Generator().manual_seed(0)
    return {
        "matrix": nn.Parameter(torch.randn(16, 300, generator=generator)),
        "norm": nn.Parameter(torch.ones(16)),
    }


def stepped(optimizer, made, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    shown = []
    optimizer.step(0.01, 1e9, lambda updates: shown.extend(u.weight.clone() for u in updates), 0.1)
    return shown


@pytest.fixture
def named(request):
    """An optimizer of that name, and the parameters that it moves."""
    if request.param == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    made = parameters()
    optimizer = Optimizer(made, ["matrix"])
    optimizer.use(request.param)
    return optimizer, made


EVERY = pytest.mark.parametrize(
    "named", ["adamw", "adamw_8bit", pytest.param("muon", marks=MUON)], indirect=True
)


@EVERY
def test_a_step_is_the_one_that_was_shown(named):
    optimizer, made = named
    for seed in range(3):
        shown = stepped(optimizer, made, seed)
        for weight, parameter in zip(shown, made.values(), strict=True):
            assert torch.equal(weight, parameter)


@EVERY
def test_a_state_that_was_stored_goes_on_to_the_last_bit(named):
    optimizer, made = named
    stepped(optimizer, made, 0)
    again = {name: nn.Parameter(p.detach().clone()) for name, p in made.items()}
    resumed = Optimizer(again, ["matrix"])
    resumed.load({n: t.clone() for n, t in optimizer.state().items()}, SOURCE)
    assert resumed.name == optimizer.name
    for seed in (1, 2):
        stepped(optimizer, made, seed)
        stepped(resumed, again, seed)
    assert all(torch.equal(again[name], made[name]) for name in made)


@EVERY
def test_a_step_that_is_refused_moves_nothing(named):
    optimizer, made = named
    stepped(optimizer, made, 0)
    before = {n: p.detach().clone() for n, p in made.items()}
    state = {n: t.clone() for n, t in optimizer.state().items()}

    def refuse(updates):
        list(updates)
        raise BackendError("not this one")

    for parameter in made.values():
        parameter.grad = torch.ones_like(parameter)
    with pytest.raises(BackendError, match="not this one"):
        optimizer.step(0.1, 1.0, refuse)
    assert all(torch.equal(before[n], p) for n, p in made.items())
    assert all(torch.equal(state[n], t) for n, t in optimizer.state().items())


@MUON
def test_muon_moves_matrices_as_torch_does_and_adamw_the_rest():
    ours, theirs = parameters(), parameters()
    optimizer = Optimizer(ours, ["matrix"])
    optimizer.use("muon")
    muon = torch.optim.Muon(
        [theirs["matrix"]], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW([theirs["norm"]], lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
    for seed in range(3):
        stepped(optimizer, ours, seed)
        generator = torch.Generator().manual_seed(seed)
        for parameter in theirs.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        muon.step()
        adamw.step()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_moments_of_8_bits_take_a_quarter_of_the_memory_and_nearly_the_same_steps():
    pytest.importorskip("bitsandbytes")
    ours, exact = parameters(), parameters()
    small, large = Optimizer(ours), Optimizer(exact)
    small.use("adamw_8bit")
    for seed in range(10):
        stepped(small, ours, seed)
        stepped(large, exact, seed)
    sizes = [sum(t.nbytes for t in o.moments().values()) for o in (small, large)]
    assert sizes[0] < 0.28 * sizes[1]
    moved = exact["matrix"] - parameters()["matrix"]
    assert (ours["matrix"] - exact["matrix"]).norm() < 0.05 * moved.norm()
    assert torch.equal(ours["norm"], exact["norm"]), "few values keep their 32 bits"


def test_without_its_package_the_8_bit_optimizer_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    optimizer = Optimizer(parameters())
    with pytest.raises(ConfigError, match=r"needs bitsandbytes.*pip install 'art-local\[8bit\]'"):
        optimizer.use("adamw_8bit")
    assert optimizer.name == "adamw"


def test_without_muon_in_torch_it_is_refused_with_the_version(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(ConfigError, match=r"torch 2\.9 or later, and this is 2"):
        Optimizer(parameters(), ["matrix"]).use("muon")


@MUON
def test_another_optimizer_after_the_first_step_is_refused_with_the_difference():
    made = parameters()
    optimizer = Optimizer(made, ["matrix"])
    optimizer.use("muon")
    stepped(optimizer, made, 0)
    resumed = Optimizer(made, ["matrix"])
    resumed.load(optimizer.state(), SOURCE)
    for each in (optimizer, resumed):
        each.use("muon")
        with pytest.raises(ConfigError, match="1 optimizer steps .* by optimizer='muon'.*'adamw'"):
            each.use("adamw")


@MUON
def test_a_step_that_has_another_optimizer_than_the_run_is_refused(make_policy, sequences):
    trainer = Trainer(make_policy(lora=None), progress=False)
    trainer.step(sequences, TrainConfig(optimizer="muon"))
    before = {n: p.detach().clone() for n, p in trainer.policy.trained().items()}
    with pytest.raises(ConfigError, match="by optimizer='muon', and this one asks for 'adamw'"):
        trainer.step(sequences, TrainConfig())
    assert all(torch.equal(before[n], p) for n, p in trainer.policy.trained().items())


def test_muon_trains_hidden_matrices_only_and_refuses_lora(make_policy, sequences):
    whole = make_policy(lora=None)
    names = whole.matrices()
    assert "model.layers.0.self_attn.q_proj.weight" in names
    assert not [n for n in names if "embed" in n or "norm" in n or "lm_head" in n]
    with pytest.raises(ConfigError, match="needs full_finetune=True"):
        Trainer(make_policy(), progress=False).step(sequences, TrainConfig(optimizer="muon"))
