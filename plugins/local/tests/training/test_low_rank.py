"""Averages, differences and other ranks of adapters of stacked experts, against dense matrices."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from art_local.checkpoints.arithmetic import changes, merge
from art_local.checkpoints.fork import Source
from art_local.session.changes import refitted
from art_local.session.checkpoints import CheckpointStore
from art_local.testing.families import make_family
from art_local.training.policy import Policy

EXPERTS = ["Mixtral", "Qwen3 MoE", "gpt-oss", "DeepSeek V3", "Llama 4, text", "DBRX"]
"""With experts as [E, O, I] and as [E, I, O], and as one matrix."""
families = pytest.mark.parametrize("family", EXPERTS)


def policy_of(family, *, rank=4, seed=None):
    """A policy; with a seed, A and B have values as training would give them."""
    policy = Policy(make_family(family), dtype=torch.float32, lora=(rank, 8), seed=0)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in policy.trained().values():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        policy.refresh()
    return policy


@pytest.fixture
def source(tmp_path):
    """Write a policy's checkpoint."""

    def write(name, policy):
        def fill(directory):
            policy.save(directory, "base")
            save_file({}, directory / "rng.safetensors")

        rank, alpha = policy.lora
        about = {
            "model": name, "seed": 0, "dtype": "float32", "versions": {}, "base_model": "base",
            "base_fingerprint": "f", "quantization": None, "full_finetune": False,
            "lora_rank": rank, "lora_alpha": alpha,
        }  # fmt: skip
        stored = CheckpointStore(tmp_path / name).write(1, fill, about)
        return Source(run=SimpleNamespace(name=name), stored=stored)

    return write


def dense(policy):
    """Return the change of each adapted weight, as one matrix (per expert)."""
    zeros = {name: torch.zeros_like(p) for name, p in policy.trained().items()}
    plain = policy.serving_of(zeros)
    return {name: weight - plain[name] for name, weight in policy.serving.items()}


def truncated(delta, rank):
    left, values, right = torch.linalg.svd(delta.double(), full_matrices=False)
    return (left[..., :rank] * values[..., None, :rank] @ right[..., :rank, :]).float()


def assert_close(found, wanted):
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        assert torch.allclose(found[name], weight, rtol=0, atol=1e-5), name


@families
@pytest.mark.parametrize("rank", [8, 3])
def test_a_merge_is_the_average_of_the_dense_changes_of_each_expert(family, rank, source, tmp_path):
    policies = [policy_of(family, seed=seed) for seed in (1, 2)]
    sources = [source(f"p{n}", policy) for n, policy in enumerate(policies)]
    one, two = map(dense, policies)
    out = tmp_path / "out"
    out.mkdir()
    merge(sources, [0.25, 0.75], out, rank)
    merged = policy_of(family, rank=rank)
    merged.load(merged.read(out), out)
    average = {name: 0.25 * one[name] + 0.75 * two[name] for name in one}
    assert_close(dense(merged), {name: truncated(delta, rank) for name, delta in average.items()})


@families
def test_a_difference_is_the_norm_of_the_dense_difference(family, source):
    policies = [policy_of(family, seed=1), policy_of(family, rank=3, seed=2)]
    one, two = map(dense, policies)
    found = changes(*(source(f"p{n}", policy) for n, policy in enumerate(policies)))
    assert len(found) == len(one)
    squares = sum(change**2 for _, change, _ in found)
    norms = sum(norm**2 for *_, norm in found)
    wanted = sum(float((two[name] - one[name]).double().square().sum()) for name in one)
    assert squares == pytest.approx(wanted, rel=1e-5)
    whole = sum(float(delta.double().square().sum()) for delta in one.values())
    assert norms == pytest.approx(whole, rel=1e-5)


@families
@pytest.mark.parametrize("rank", [6, 2])
def test_a_resume_in_another_rank_has_the_closest_change_of_each_expert(family, rank, tmp_path):
    policy, other = policy_of(family, seed=1), policy_of(family, rank=rank)
    policy.save(tmp_path, "base")
    stored = load_file(tmp_path / "adapter_model.safetensors")
    other.load(refitted(stored, (4, 8), (rank, 8), other.trained()), tmp_path)
    assert_close(
        dense(other), {name: truncated(delta, rank) for name, delta in dense(policy).items()}
    )


def test_an_expert_without_a_change_can_still_learn_in_a_lower_rank():
    policy, fresh = policy_of("Mixtral"), policy_of("Mixtral", rank=2).trained()
    found = refitted(policy.trained(), (4, 8), (2, 8), fresh)
    for name, tensor in found.items():
        assert torch.equal(tensor, fresh[name]), name
