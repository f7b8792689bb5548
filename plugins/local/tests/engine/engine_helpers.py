"""Requests to an engine, and transformers' own answer to them."""

from __future__ import annotations

import copy

import torch

from art_core.endpoint.engine import Sampling

GREEDY = Sampling(max_tokens=24, temperature=0.0)
PROMPTS = [list(range(40 + k, 60 + 5 * k)) for k in range(6)]


async def sample(engine, prompt, sampling=GREEDY, adapter="base"):
    return [token async for token in engine.generate(prompt, sampling, adapter)]


def ids(tokens):
    return [token.id for token in tokens]


def forward_logprobs(model, prompt, tokens):
    with torch.no_grad():
        logits = model(torch.tensor([prompt + ids(tokens)])).logits.float()
    rows = logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
    return rows.gather(1, torch.tensor(ids(tokens))[:, None])[:, 0]


def assert_logprobs_are_the_models(model, prompt, tokens):
    reported = torch.tensor([token.logprob for token in tokens])
    assert torch.allclose(reported, forward_logprobs(model, prompt, tokens), atol=1e-4)


def noisy_copy(model, seed=1):
    """Other weights of the same shape, as tensors to load and as a model to compare with."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return other, {name: p.detach() for name, p in other.named_parameters()}
