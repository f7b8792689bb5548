"""What a resume notices of its last process."""

from __future__ import annotations

import torch

from art_local.session.changes import refitted, warn_of_threads

STEM = "base_model.model.up"


def adapter(rank):
    generator = torch.Generator().manual_seed(rank)
    a_KI, b_OK = (torch.randn(*shape, generator=generator) for shape in ((rank, 6), (5, rank)))
    return {f"{STEM}.lora_A.weight": a_KI, f"{STEM}.lora_B.weight": b_OK}


def change(tensors, alpha):
    a_KI, b_OK = tensors.values()
    return alpha / len(a_KI) * b_OK @ a_KI


def test_a_higher_rank_changes_nothing_and_can_learn():
    was = adapter(2)
    found = refitted(was, (2, 4), (4, 16), adapter(4))
    assert torch.allclose(change(found, 16), change(was, 4), atol=1e-6)
    assert found[f"{STEM}.lora_A.weight"][2:].abs().min() > 0


def test_a_lower_rank_is_the_closest():
    was = adapter(4)
    found = refitted(was, (4, 4), (2, 8), adapter(2))
    left, values, right = torch.linalg.svd(change(was, 4))
    closest = left[:, :2] * values[:2] @ right[:2]
    assert torch.allclose(change(found, 8), closest, atol=1e-5)


def test_another_number_of_threads_is_a_warning(caplog):
    warn_of_threads({})
    warn_of_threads({"threads": torch.get_num_threads()})
    assert not caplog.records
    warn_of_threads({"threads": 77})
    assert "written with 77 threads" in caplog.text
