"""Rank settings over a tiny model, and one process to compare ranks with."""

from __future__ import annotations

import os

import attrs
import torch

from art_local.distributed.rank import RankSettings
from art_local.models.load import load_model
from art_local.models.placement import placement
from art_local.training.policy import Policy
from art_local.training.trainer import Trainer

LORA = (4, 8)


def settings(directory, count, dtype=torch.float32, **options):
    made = RankSettings(
        directory=directory,
        devices=("cpu",) * count,
        dtype=dtype,
        lora=LORA,
        seed=0,
        activation_checkpointing="auto",
        threads=1,
    )
    return attrs.evolve(made, **options)


def policy(directory, dtype=torch.float32):
    model = load_model(directory, placement("cpu", "float32"), dtype)
    return Policy(model, dtype=dtype, lora=LORA, seed=0)


def likelihood(tokens):
    return -tokens.logprobs_R


def one_process(directory):
    return Trainer(policy(directory), progress=False)


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.policy.trained().items()}


def largest_difference(some, others):
    assert some.keys() == others.keys()
    return max(float((some[name] - others[name]).abs().max()) for name in some)


def failing_in_rank_1(tokens):
    if os.environ.get("RANK") == "1":
        raise ZeroDivisionError("only here")
    return -tokens.logprobs_R
