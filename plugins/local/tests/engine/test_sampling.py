"""The embedded engine against transformers itself, on a random model of half a million weights."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch
from engine_helpers import PROMPTS, assert_logprobs_are_the_models, ids, sample

from art_core.endpoint.engine import Sampling
from art_local.engine.sampling import draw

pytestmark = pytest.mark.torch


async def test_greedy_sampling_equals_generate_for_all_rows_of_a_mixed_batch(engine, model) -> None:
    answers = await asyncio.gather(*[sample(engine, prompt) for prompt in PROMPTS * 2])
    for prompt, tokens in zip(PROMPTS * 2, answers, strict=True):
        expected = model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)
        assert ids(tokens) == expected[0, len(prompt) :].tolist()
        assert_logprobs_are_the_models(model, prompt, tokens)
        assert tokens[-1].finish in ("stop", "length")
        assert all(token.finish is None for token in tokens[:-1])


async def test_requests_that_join_and_leave_while_others_decode_sample_as_alone(engine) -> None:
    lengths = [30, 5, 17, 2, 24, 11]
    plans = [Sampling(max_tokens=n, seed=n) for n in lengths]
    alone = [await sample(engine, p, s) for p, s in zip(PROMPTS, plans, strict=True)]

    async def late(delay, prompt, sampling):
        await asyncio.sleep(delay)
        return await sample(engine, prompt, sampling)

    together = await asyncio.gather(
        *[late(0.01 * k, p, s) for k, (p, s) in enumerate(zip(PROMPTS, plans, strict=True))]
    )
    assert [ids(tokens) for tokens in together] == [ids(tokens) for tokens in alone]


async def test_a_seed_repeats_and_other_seeds_differ(engine) -> None:
    first, again, other = await asyncio.gather(
        *[sample(engine, PROMPTS[0], Sampling(max_tokens=24, seed=s)) for s in (1, 1, 2)]
    )
    assert ids(first) == ids(again) != ids(other)


async def test_a_negative_seed_is_another_one(engine) -> None:
    plans = [Sampling(max_tokens=24, seed=s) for s in (7, -7, 7 + (1 << 32))]
    drawn = [ids(await sample(engine, PROMPTS[0], plan)) for plan in plans]
    assert drawn[0] != drawn[1] and drawn[0] != drawn[2]


def test_a_seeded_draw_does_not_change_with_the_last_bits_of_the_logits() -> None:
    """A single row and the same row in a batch differ in them. Without a seed some draws change."""
    rows, size = 100, 20_000
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, size, generator=generator)
    nearly = logits + torch.linspace(-1e-5, 1e-5, size)
    uniforms = torch.rand(rows, generator=generator).tolist()
    races = [torch.empty(size).exponential_(generator=generator) for _ in range(rows)]

    def drawn(values, numbers, seed):
        samplings = [Sampling(max_tokens=1, seed=seed)] * rows
        return [token_id for token_id, *_ in draw(values, samplings, uniforms, numbers)]

    assert drawn(logits, races, 1) == drawn(nearly, races, 1)
    unseeded = [None] * rows
    assert drawn(logits, unseeded, None) != drawn(nearly, unseeded, None)


async def test_samples_follow_the_models_distribution_and_top_p_cuts_its_tail(
    engine, model
) -> None:
    with torch.no_grad():
        probs = model(torch.tensor([PROMPTS[0]])).logits[0, -1].float().softmax(-1)
    one = [Sampling(max_tokens=1, seed=s) for s in range(400)]
    drawn = [ids(t)[0] for t in await asyncio.gather(*[sample(engine, PROMPTS[0], s) for s in one])]
    best = int(probs.argmax())
    share, expected = drawn.count(best) / 400, float(probs[best])
    assert abs(share - expected) < 4 * (expected * (1 - expected) / 400) ** 0.5
    narrow = [Sampling(max_tokens=1, seed=s, top_p=0.02, temperature=0.9) for s in range(40)]
    kept = {
        ids(t)[0] for t in await asyncio.gather(*[sample(engine, PROMPTS[0], s) for s in narrow])
    }
    assert kept <= set(probs.topk(4).indices.tolist())


async def test_logprobs_are_of_the_raw_logits_whatever_the_sampling(engine, model) -> None:
    sampling = Sampling(max_tokens=12, temperature=0.6, top_p=0.8, top_logprobs=3, seed=4)
    tokens = await sample(engine, PROMPTS[1], sampling)
    assert_logprobs_are_the_models(model, PROMPTS[1], tokens)
    values = [logprob for _, logprob in tokens[0].top]
    assert len(values) == 3 and values == sorted(values, reverse=True)


async def test_stop_tokens_end_a_sequence_and_stay_in_it(engine) -> None:
    tokens = await sample(engine, PROMPTS[0])
    stop = tokens[5].id
    cut = await sample(
        engine, PROMPTS[0], Sampling(max_tokens=24, temperature=0.0, stop_token_ids=(stop,))
    )
    assert ids(cut) == ids(tokens)[: ids(tokens).index(stop) + 1] and cut[-1].finish == "stop"


async def test_equal_prompts_are_computed_once(engine, monkeypatch) -> None:
    computed = []
    begun, all_wait = threading.Event(), threading.Event()
    prefill = type(engine._worker._forward).prefill

    def counting(self, prompts, source, cache):
        if not computed:
            begun.set()
            assert all_wait.wait(60)
        computed.append((len(prompts), len(source)))
        return prefill(self, prompts, source, cache)

    monkeypatch.setattr(type(engine._worker._forward), "prefill", counting)
    first = asyncio.create_task(sample(engine, PROMPTS[1]))
    assert await asyncio.to_thread(begun.wait, 60)
    equal = [asyncio.create_task(sample(engine, PROMPTS[0])) for _ in range(8)]
    for _ in range(10):
        await asyncio.sleep(0)
    all_wait.set()
    await asyncio.gather(first, *equal)
    assert computed == [(1, 1), (1, 8)]
