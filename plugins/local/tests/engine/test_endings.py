"""Requests that end early: left by their caller, failed, or closed with the embedded engine."""

from __future__ import annotations

import asyncio

import pytest
from engine_helpers import PROMPTS, sample

from art_core.base.errors import EngineError
from art_core.endpoint.engine import Sampling
from art_local.engine import TransformersEngine
from art_local.engine.batch import Batch
from waiting import until_async

pytestmark = pytest.mark.torch


async def test_closing_the_stream_cancels_the_request_and_frees_its_row(engine) -> None:
    stream = engine.generate(PROMPTS[0], Sampling(max_tokens=400, temperature=0.0))
    other = asyncio.create_task(sample(engine, PROMPTS[1]))
    await anext(stream)
    await stream.aclose()
    assert len(await other) == 24
    await until_async(lambda: engine._worker._batches == {})


async def test_a_failing_step_fails_its_requests_with_the_reason_and_the_engine_goes_on(
    engine, monkeypatch
) -> None:
    def broken(self, others):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(Batch, "step", broken)
        results = await asyncio.gather(
            *[sample(engine, prompt) for prompt in PROMPTS], return_exceptions=True
        )
    assert {str(result) for result in results} == {"RuntimeError: out of memory"}
    assert len(await sample(engine, PROMPTS[0])) == 24


async def test_a_dead_worker_ends_all_requests_now_and_later_with_the_reason(
    model, monkeypatch
) -> None:
    engine = TransformersEngine(model)
    worker = engine._worker

    keys = [worker._next_key, worker._next_key]

    def dying():
        if keys:
            return keys.pop()()
        raise SystemError("the thread is lost")

    monkeypatch.setattr(worker, "_next_key", dying)
    stream = engine.generate(PROMPTS[0], Sampling(max_tokens=400, temperature=0.0))
    await anext(stream)
    with pytest.raises(EngineError, match="died of SystemError: the thread is lost"):
        _ = [token async for token in stream]
    with pytest.raises(EngineError, match="died of SystemError"):
        await sample(engine, PROMPTS[0])
    await engine.close()


async def test_closing_ends_requests_under_way_and_a_second_close_does_nothing(model) -> None:
    engine = TransformersEngine(model)
    stream = engine.generate(PROMPTS[0], Sampling(max_tokens=400, temperature=0.0))
    await anext(stream)
    await engine.close()
    with pytest.raises(EngineError, match="the engine is closed"):
        _ = [token async for token in stream]
    with pytest.raises(EngineError, match="the engine is closed"):
        await sample(engine, PROMPTS[0])
    await engine.close()
