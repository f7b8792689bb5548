"""Fixtures: a tiny model on disk, loaded fresh, and rows to train on."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory) -> Path:
    from art_local.testing.tiny import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def make_policy(tiny_directory):
    import torch

    from art_local.models.load import load_model
    from art_local.models.placement import placement
    from art_local.training.policy import Policy

    def make(*, lora=(4, 8), dtype=torch.float32, **options):
        loaded_as = torch.float32 if lora is None else dtype
        model = load_model(tiny_directory, placement("cpu", "float32"), loaded_as)
        return Policy(model, **{"dtype": dtype, "lora": lora, "seed": 0, **options})

    return make


@pytest.fixture
def sequences():
    import torch

    from art_core.rl.sequences import TokenSequence

    generator = torch.Generator().manual_seed(1)
    made = []
    for row in range(12):
        length = 6 + 3 * row
        ids = torch.randint(0, 256, (length,), generator=generator).tolist()
        trainable = [position >= 4 for position in range(length)]
        made.append(
            TokenSequence(
                token_ids=tuple(ids),
                trainable=tuple(trainable),
                logprobs=tuple(-5.5 if t else 0.0 for t in trainable),
                advantage=1.0 if row % 2 else -1.0,
                weight=1 / (length - 4),
            )
        )
    return made
