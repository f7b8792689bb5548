"""More than the embedded engine holds at once, and what it can never hold."""

from __future__ import annotations

import asyncio

import pytest
from engine_helpers import GREEDY, PROMPTS, assert_logprobs_are_the_models, ids, sample

from art_core.base.errors import ConfigError, EngineError
from art_core.endpoint.engine import Sampling
from art_local.engine import TransformersEngine
from art_local.engine.batch import Batch

pytestmark = pytest.mark.torch


async def test_more_requests_than_rows_wait_their_turn(model) -> None:
    engine = TransformersEngine(model, max_batch_size=2, prefill_tokens=40)
    answers = await asyncio.gather(*[sample(engine, prompt) for prompt in PROMPTS])
    for prompt, tokens in zip(PROMPTS, answers, strict=True):
        assert_logprobs_are_the_models(model, prompt, tokens)
    await engine.close()


async def test_when_the_cache_is_full_rows_are_computed_again_and_nothing_changes(
    model, monkeypatch
) -> None:
    tokens_held, held, sampled = 2 * 60, [], Batch._sample

    def watched(batch, *args):
        held.append((len(batch.rows), batch.cache_tokens))
        return sampled(batch, *args)

    monkeypatch.setattr(Batch, "_sample", watched)
    engine = TransformersEngine(model, cache_bytes=tokens_held * 2 * 2 * 2 * 32 * 4)
    plan = Sampling(max_tokens=60, seed=3)
    answers = await asyncio.gather(*[sample(engine, prompt, plan) for prompt in PROMPTS])
    assert max(tokens for _, tokens in held) <= tokens_held
    assert max(rows for rows, _ in held) > 1
    roomy = TransformersEngine(model)
    expected = [await sample(roomy, prompt, plan) for prompt in PROMPTS]
    assert [ids(tokens) for tokens in answers] == [ids(tokens) for tokens in expected]
    await engine.close()
    await roomy.close()


async def test_the_context_ends_a_sequence(engine, model) -> None:
    prompt = list(range(200)) * 2
    tokens = await sample(engine, prompt, Sampling(max_tokens=10_000, seed=1))
    assert len(tokens) <= engine.context_length - 400 and tokens[-1].finish


@pytest.mark.parametrize(
    ("prompt", "sampling", "reason"),
    [
        ([], GREEDY, "a prompt of 0 tokens"),
        ([1] * 512, GREEDY, "between 1 and 511 fit"),
        ([300], GREEDY, "token 300 is outside the vocabulary of 260"),
        ([1], Sampling(max_tokens=0), "max_tokens must be at least 1"),
    ],
)
async def test_a_request_that_cannot_run_is_refused(engine, prompt, sampling, reason) -> None:
    with pytest.raises(EngineError, match=reason):
        await sample(engine, prompt, sampling)


def test_impossible_limits_are_refused(model) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        TransformersEngine(model, max_batch_size=0)
