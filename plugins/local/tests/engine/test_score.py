"""Log-probs of given texts: those of a whole pass, by the weights of a name, beside sampling."""

from __future__ import annotations

import asyncio

import pytest
import torch
from engine_helpers import PROMPTS, assert_logprobs_are_the_models, noisy_copy, sample

from art_core.base.errors import ConfigError, EngineError


def whole_logprobs(model, ids):
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


async def test_a_text_has_the_log_probs_of_a_whole_pass(engine, model):
    for ids in PROMPTS:
        found = torch.tensor(await engine.score(ids))
        torch.testing.assert_close(found, whole_logprobs(model, ids), rtol=1e-5, atol=1e-5)


async def test_a_sampled_answer_has_the_log_probs_that_it_was_sampled_with(engine):
    tokens = await sample(engine, PROMPTS[0])
    found = await engine.score([*PROMPTS[0], *(token.id for token in tokens)])
    assert found[-len(tokens) :] == pytest.approx([t.logprob for t in tokens], abs=1e-4)


async def test_each_name_scores_by_its_own_weights_while_others_are_sampled(engine, model):
    other, tensors = noisy_copy(model)
    engine.load("noisy", tensors)
    sampled, *scores = await asyncio.gather(
        sample(engine, PROMPTS[1]),
        *(engine.score(ids, name) for ids in PROMPTS for name in ("base", "noisy")),
    )
    assert_logprobs_are_the_models(model, PROMPTS[1], sampled)
    for place, found in enumerate(scores):
        wanted = whole_logprobs((model, other)[place % 2], PROMPTS[place // 2])
        torch.testing.assert_close(torch.tensor(found), wanted, rtol=1e-5, atol=1e-4)


async def test_texts_that_wait_share_a_pass_and_a_large_one_has_its_own(model, monkeypatch):
    from art_local.engine import DeviceLock, TransformersEngine

    lock = DeviceLock()
    engine = TransformersEngine(model, lock=lock, prefill_tokens=100)
    forward, passes = engine._worker._forward, []
    score = forward.score
    monkeypatch.setattr(
        forward, "score", lambda texts: passes.append([len(t) for t in texts]) or score(texts)
    )
    texts = [[65] * 20, [66] * 30, [1], [67] * 101, [68] * 40]
    with lock.hold("training"):
        waiting = [asyncio.ensure_future(engine.score(ids)) for ids in texts]
        await asyncio.sleep(0)
    scores = await asyncio.gather(*waiting)
    for ids, found in zip(texts, scores, strict=True):
        assert len(found) == len(ids) - 1
        wanted = whole_logprobs(model, ids)
        torch.testing.assert_close(torch.tensor(found), wanted, rtol=1e-5, atol=1e-5)
    assert sorted(length for each in passes for length in each) == [1, 20, 30, 40, 101]
    assert [101] in passes
    assert all(len(each) * max(each) <= 101 for each in passes)
    assert len(passes) < len(texts)
    await engine.close()


async def test_one_token_has_none_before_it(engine):
    assert await engine.score([65]) == []


async def test_what_cannot_be_scored_is_refused(engine):
    with pytest.raises(ConfigError, match="token 999 is outside the vocabulary of 260"):
        await engine.score([1, 999])
    with pytest.raises(EngineError, match="no adapter 'other'; loaded: base"):
        await engine.score([1, 2], "other")


async def test_without_fused_layers_the_output_head_must_be_known(model, monkeypatch):
    from art_local.engine import TransformersEngine, choose

    monkeypatch.setattr(choose, "is_decoder", lambda _: False)
    engine = TransformersEngine(model)
    assert engine.state == "slots"
    with monkeypatch.context() as unknown:
        unknown.setattr("art_local.engine.forward.output_heads", lambda _: [])
        with pytest.raises(EngineError, match="texts cannot be scored"):
            await engine.score([1, 2])
    scores = await asyncio.gather(*[engine.score(prompt) for prompt in PROMPTS])
    for prompt, found in zip(PROMPTS, scores, strict=True):
        wanted = whole_logprobs(model, prompt)
        torch.testing.assert_close(torch.tensor(found), wanted, rtol=1e-5, atol=1e-4)
    await engine.close()


async def test_a_closed_engine_scores_nothing(engine):
    await engine.close()
    with pytest.raises(EngineError, match="the engine is closed"):
        await engine.score([1, 2])


async def test_a_text_that_waits_longer_than_the_limit_is_given_up(model):
    from art_local.engine import DeviceLock, TransformersEngine

    lock = DeviceLock()
    engine = TransformersEngine(model, lock=lock, request_timeout_s=0.2)
    late = pytest.raises(EngineError, match="of 2 tokens was not scored within 0.2 s")
    with lock.hold("training"), late:
        await engine.score([1, 2])
    await engine.close()
