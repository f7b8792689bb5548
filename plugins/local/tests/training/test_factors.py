"""If the engine gets adapters, the trainer computes with W, A and B separately, as it does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from art_local.training.lora import lora_layers


@pytest.fixture
def policies(make_policy):
    """The same policy with merged weights and with factors; B is not zero."""
    made = make_policy(merged=True), make_policy(merged=False)
    for policy in made:
        generator = torch.Generator().manual_seed(3)
        for name, parameter in policy.trained().items():
            if "lora_B" in name:
                parameter.data.normal_(std=0.05, generator=generator)
        policy.refresh()
    return made


IDS = torch.arange(3, 40)[None]
ROWS = torch.arange(36)


def logprobs(policy):
    return policy.logprobs(IDS, ROWS, IDS[0, 1:], chunk_size=16)[0]


def test_in_float32_both_ways_give_the_same_log_probs_and_gradients(policies):
    merged, factors = policies
    assert factors.serving == {}
    assert len(merged.serving) == len(lora_layers(merged.model))
    torch.testing.assert_close(logprobs(factors), logprobs(merged), atol=1e-4, rtol=1e-4)
    for policy in policies:
        logprobs(policy).sum().backward()
    for name, parameter in merged.trained().items():
        found = factors.trained()[name].grad
        torch.testing.assert_close(found, parameter.grad, atol=1e-3, rtol=1e-3)


def test_in_bfloat16_factors_keep_what_merging_would_round_away(make_policy):
    """An adapter far below a bf16 step of W still moves the log-probs, exactly as without it."""
    policy = make_policy(merged=False, dtype=torch.bfloat16)
    before = logprobs(policy)
    for name, parameter in policy.trained().items():
        if "lora_B" in name:
            parameter.data.fill_(1e-3)
    policy.refresh()
    assert not torch.equal(logprobs(policy), before)


def test_switching_the_adapter_off_gives_the_base_model(policies):
    _, factors = policies
    with factors.model.disable_adapter():
        base = logprobs(factors)
    assert float((base - logprobs(factors)).detach().abs().max()) > 1e-3


def test_either_way_a_policy_returns_to_weights_that_it_kept(policies):
    for policy in policies:
        before, kept = logprobs(policy), policy.kept()
        policy.load({name: 2 * p for name, p in policy.trained().items()}, Path("others"))
        assert not torch.allclose(logprobs(policy), before, atol=1e-2)
        policy.put_back(kept)
        assert torch.equal(logprobs(policy), before)
