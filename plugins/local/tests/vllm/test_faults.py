"""The inference server killed, hanging or unable to start: rollouts fail with a reason, in time."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal

import pytest
from vllm_helpers import adapter, gone, sampled, state

from art_core.base.errors import EngineError
from waiting import until_async


async def failing(engine, **options):
    """The reason why a request failed."""
    with pytest.raises(EngineError) as caught:
        await sampled(engine, **options)
    return str(caught.value)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_killed_server_fails_its_requests_and_comes_back_with_its_adapters(start, stream):
    engine = start(token_s=0.1)
    await asyncio.to_thread(engine.publish, "m@1", adapter())
    pid = state(engine)["pid"]
    running = [asyncio.create_task(failing(engine, max_tokens=50, stream=stream)) for _ in range(5)]
    await until_async(lambda: state(engine)["running"] == 5)
    os.kill(pid, signal.SIGKILL)
    for reason in await asyncio.gather(*running):
        assert "vLLM's server failed: it ended with status 9" in reason
        assert "the end of " in reason
    assert [t.logprob for t in await sampled(engine, adapter_name="m@1")] == [-0.25] * 4
    assert state(engine)["pid"] != pid
    assert engine.step_metrics()["throughput/engine_restarts"] == 1.0


async def test_a_server_that_does_not_answer_is_killed_and_started_again(start):
    engine = start(token_s=0.1, timeouts={"answer_s": 1.0})
    pid = state(engine)["pid"]
    running = asyncio.create_task(failing(engine, max_tokens=50))
    await until_async(lambda: state(engine)["running"] == 1)
    os.kill(pid, signal.SIGSTOP)
    assert "it did not answer within 1 s" in await running
    assert len(await sampled(engine)) == 4
    assert gone(pid)


async def test_a_server_that_answers_but_makes_no_tokens_is_killed(start):
    engine = start(mute=2, timeouts={"stall_s": 2.0})
    assert "1 requests ran for 2 s without a token" in await failing(engine, max_tokens=9)
    assert len(await sampled(engine, max_tokens=2)) == 2


async def test_a_request_has_a_timeout_of_its_own(start):
    engine = start(mute=2, request_timeout_s=1.0)
    reason = await failing(engine, max_tokens=9, stream=True)
    assert "no token from vLLM within 1 s after 2 tokens" in reason


def test_a_server_that_does_not_start_says_so_with_the_end_of_its_log(start, monkeypatch):
    monkeypatch.setenv("FAKE_DIES", "3")
    with pytest.raises(EngineError) as caught:
        start()
    assert "it did not start: it ended with status 3" in str(caught.value)
    assert "RuntimeError: no memory for the weights" in str(caught.value)


def test_a_server_that_starts_too_slowly_is_given_up(start, monkeypatch):
    monkeypatch.setenv("FAKE_START_S", "1e6")
    with pytest.raises(EngineError, match="it did not start within 0.5 s"):
        start(timeouts={"start_s": 0.5})


async def test_after_too_many_failures_the_engine_ends_and_says_why(start, monkeypatch):
    engine = start()
    monkeypatch.setenv("FAKE_DIES", "4")
    os.kill(state(engine)["pid"], signal.SIGKILL)
    await asyncio.sleep(0.1)
    reason = await failing(engine, max_tokens=50)
    while "is not restarted" not in reason:
        reason = await failing(engine)
    assert "ended with status 4" in reason
    assert "It failed 3 times in a row" in reason
    with pytest.raises(EngineError, match="is not restarted"):
        engine.check()
    with pytest.raises(EngineError, match="is not restarted"):
        await asyncio.to_thread(engine.publish, "m@1", adapter())


async def test_a_server_whose_adapters_were_deleted_ends_and_says_which_directory_is_gone(
    start, tmp_path
):
    engine = start(timeouts={"restarts": 1})
    await asyncio.to_thread(engine.publish, "m@1", adapter())
    shutil.rmtree(tmp_path / "run" / "serving")
    os.kill(state(engine)["pid"], signal.SIGKILL)
    await until_async(lambda: engine.ended)
    with pytest.raises(EngineError) as caught:
        engine.check()
    place = tmp_path / "run" / "serving" / "000001-m@1"
    assert f"'m@1' cannot be loaded again: its directory {place} does not exist" in str(
        caught.value
    )
    assert "Restart the program" in str(caught.value)


async def test_an_adapter_that_is_published_while_the_server_is_down_is_served_after_it(start):
    engine = start()
    os.kill(state(engine)["pid"], signal.SIGKILL)
    await asyncio.to_thread(engine.publish, "m@1", adapter())
    assert [t.logprob for t in await sampled(engine, adapter_name="m@1")] == [-0.25] * 4


async def test_two_servers_run_side_by_side(start):
    one = start()
    two = start()
    assert one.server.client.url != two.server.client.url
    await one.close()
    assert len(await sampled(two)) == 4
