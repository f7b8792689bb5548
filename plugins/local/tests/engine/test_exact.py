"""With `deterministic`, a request's tokens and log-probs do not depend on the other requests."""

from __future__ import annotations

import asyncio

import pytest

pytestmark = pytest.mark.torch
PROMPTS = [[7 * place + n for place in range(3 + 5 * n)] for n in range(4)]


def jobs():
    from art_core.endpoint.engine import Sampling

    return [
        (PROMPTS[n % 4], Sampling(max_tokens=3 + n % 5, temperature=float(n % 3 > 0), seed=n))
        for n in range(20)
    ]


async def sampled(engine, job):
    return [(token.id, token.logprob) async for token in engine.generate(*job)]


@pytest.mark.parametrize("cache_bytes", [None, 1], ids=["ample", "small cache"])
async def test_requests_have_the_same_bits_alone_and_together(model, cache_bytes):
    from art_local.engine import TransformersEngine

    engine = TransformersEngine(model, deterministic=True, cache_bytes=cache_bytes)
    try:
        together = await asyncio.gather(*(sampled(engine, job) for job in jobs()))
        backwards = await asyncio.gather(*(sampled(engine, job) for job in jobs()[::-1]))
        assert backwards[::-1] == together
        assert [await sampled(engine, job) for job in jobs()[:5]] == together[:5]
    finally:
        await engine.close()


def forwards(model):
    from functools import partial

    from art_local.engine.cohorts import CacheForward
    from art_local.engine.exact import ExactSlotForward
    from art_local.engine.recompute import RecomputeForward

    return [
        ExactSlotForward,
        partial(CacheForward, apart=True),
        partial(RecomputeForward, apart=True),
    ]


@pytest.mark.parametrize("kind", range(3), ids=["slots", "own cache", "whole texts"])
def test_each_forward_pass_has_an_exact_form_that_is_right(model, kind):
    from art_local.engine.exact import is_exact
    from art_local.engine.trial import is_right
    from art_local.models.load import sharing_parameters

    forward = forwards(model)[kind](sharing_parameters(model).eval())
    assert is_right(forward)
    assert is_exact(forward)
    forward.detach()


def test_rows_that_share_a_pass_are_not_exact(model):
    from art_local.engine.exact import is_exact
    from art_local.engine.recompute import RecomputeForward
    from art_local.models.load import sharing_parameters

    assert not is_exact(RecomputeForward(sharing_parameters(model).eval()))


def test_a_model_whose_slots_are_not_exact_is_served_another_way(model, monkeypatch):
    from art_local.engine import choose
    from art_local.engine.cohorts import CacheForward
    from art_local.models.load import sharing_parameters

    monkeypatch.setattr(choose, "is_exact", lambda forward: isinstance(forward, CacheForward))
    module = sharing_parameters(model).eval()
    assert isinstance(choose.make_forward(module, exact=True), CacheForward)
    assert module.config._attn_implementation == "sdpa"
