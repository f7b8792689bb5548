"""vLLM's engine against a fake server that enforces the documented requests."""

from __future__ import annotations

import asyncio
import os
import signal
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from vllm_helpers import adapter, gone, sampled, state

from art_core.base.errors import BackendError, ConfigError, EngineError
from art_core.endpoint.engine import Sampling, Token
from art_local.engine.protocol import StepWeights
from art_local.engines import wait_ready
from art_local.vllm.client import scores_of
from art_local.vllm.pool import VllmPool
from waiting import until_async


@pytest.mark.parametrize("stream", [True, False])
async def test_tokens_come_with_ids_log_probs_and_alternatives(start, stream):
    engine = start()
    tokens = await sampled(engine, max_tokens=3, top_logprobs=2, stream=stream, seed=1)
    assert tokens == [
        Token(11, -0.5, ((11, -0.5), (12, -1.5))),
        Token(12, -0.5, ((12, -0.5), (13, -1.5))),
        Token(13, -0.5, ((13, -0.5), (14, -1.5)), "length"),
    ]


async def test_a_text_is_scored_by_the_weights_of_a_name(start, tmp_path):
    engine = start()
    await asyncio.to_thread(engine.publish, "m@1", adapter(1.0))
    assert await engine.score([10, 11, 12], "base") == [-0.5, -0.5]
    assert await engine.score([10, 11, 12], "m@1") == [-0.25, -0.25]
    with pytest.raises(ConfigError, match="token 300 is outside the vocabulary of 256"):
        await engine.score([10, 300], "base")
    with pytest.raises(EngineError, match="no adapter 'm@7'"):
        await engine.score([10, 11], "m@7")


async def test_a_text_that_is_not_answered_in_time_is_given_up(start):
    engine = start(token_s=1.0, request_timeout_s=0.2)
    with pytest.raises(EngineError, match="no answer from vLLM within 0.2 s"):
        await engine.score([10, 11], "base")


@pytest.mark.parametrize("answer", [{}, {"choices": [{"prompt_logprobs": [None]}]}])
def test_an_answer_without_scores_names_what_it_has(answer):
    with pytest.raises(EngineError, match="no log-probs of the prompt"):
        scores_of(answer, [1, 2])


async def test_end_tokens_and_those_asked_for_end_a_sequence_and_stay_in_it(start):
    engine = start()
    own = await sampled(engine, prompt=(198,), max_tokens=9)
    assert [(t.id, t.finish) for t in own] == [(199, None), (200, "stop")]
    asked = await sampled(engine, prompt=(10,), max_tokens=9, stop_token_ids=(12,))
    assert [(t.id, t.finish) for t in asked] == [(11, None), (12, "stop")]


async def test_a_sequence_ends_where_the_context_does(start):
    tokens = await sampled(start(), prompt=[10] * 60, max_tokens=50)
    assert (len(tokens), tokens[-1].finish) == (4, "length")


@pytest.mark.parametrize(
    ("prompt", "name", "said"),
    [
        ((), "base", "a prompt of 0 tokens; between 1 and 63 fit"),
        ([1] * 64, "base", "a prompt of 64 tokens"),
        ((300,), "base", "token 300 is outside the vocabulary of 256"),
        ((1,), "m@7", "no adapter 'm@7'; loaded: base"),
    ],
)
async def test_requests_that_cannot_be_say_why(start, prompt, name, said):
    with pytest.raises(EngineError, match=said):
        await sampled(start(), prompt=prompt, adapter_name=name)


async def test_a_published_adapter_answers_under_its_name_until_it_is_unloaded(start, tmp_path):
    engine = start()
    await asyncio.to_thread(engine.publish, "m@1", adapter())
    assert engine.adapters == ["base", "m@1"]
    assert [t.logprob for t in await sampled(engine, adapter_name="m@1")] == [-0.25] * 4
    await asyncio.to_thread(engine.unload, "m@1")
    assert engine.adapters == ["base"]
    assert state(engine)["adapters"] == {}
    assert list((tmp_path / "run" / "serving").iterdir()) == []


async def test_weights_of_the_same_name_come_from_another_path(start, tmp_path):
    """So that the server's prefix cache never mixes two weights."""
    engine = start()
    await asyncio.to_thread(engine.publish, "m@1", adapter())
    first = state(engine)["adapters"]["m@1"]
    await asyncio.to_thread(engine.publish, "m@1", adapter())
    second = state(engine)["adapters"]["m@1"]
    assert first != second
    assert [p.name for p in (tmp_path / "run" / "serving").iterdir()] == [Path(second).name]


async def test_an_adapter_that_the_server_refuses_is_not_served_and_the_old_one_stays(start):
    engine = start()
    await asyncio.to_thread(engine.publish, "m@1", adapter())
    with pytest.raises(EngineError, match="LoRA rank 64 is greater than max_lora_rank"):
        await asyncio.to_thread(engine.publish, "m@1", adapter(rank=64))
    with pytest.raises(EngineError, match="LoRA rank 64"):
        await asyncio.to_thread(engine.publish, "m@2", adapter(rank=64))
    assert engine.adapters == ["base", "m@1"]
    assert len(await sampled(engine, adapter_name="m@1")) == 4


async def test_an_adapter_that_the_disk_does_not_take_says_so(start, tmp_path):
    def full(_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    engine = start()
    with pytest.raises(EngineError, match="could not be written to .*No space left.*Free disk"):
        await asyncio.to_thread(engine.publish, "m@1", StepWeights(merged=dict, write=full))
    assert engine.adapters == ["base"]
    assert list((tmp_path / "run" / "serving").iterdir()) == []


@pytest.mark.parametrize("stream", [True, False])
async def test_closing_the_generator_aborts_the_request(start, stream):
    engine = start(token_s=0.05)
    tokens = engine.generate((10,), Sampling(max_tokens=50, stream=stream), "base")
    async with aclosing(tokens):
        waiting = asyncio.create_task(anext(tokens))
        await asyncio.sleep(0.3)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    await until_async(lambda: state(engine)["aborted"])
    assert (state(engine)["aborted"], state(engine)["running"]) == (1, 0)


async def test_many_requests_run_at_once(start):
    engine = start(together=40)
    answers = await asyncio.gather(*(sampled(engine) for _ in range(40)))
    assert [len(tokens) for tokens in answers] == [4] * 40


async def test_the_servers_measurements_become_metrics_of_the_step(start):
    engine = start(token_s=0.2)
    await asyncio.gather(*(sampled(engine, prompt=(1, 2, 3), max_tokens=10) for _ in range(2)))
    await asyncio.sleep(1.2)
    metrics = engine.step_metrics()
    assert 0 < metrics["throughput/engine_running"] <= 2
    assert metrics["throughput/engine_kv_cache_use"] == 0.25
    assert metrics["throughput/engine_prefix_hit_rate"] == 0.5
    assert metrics["throughput/engine_generation_tok_per_s"] > 0
    assert metrics["throughput/engine_restarts"] == 0.0
    assert "throughput/engine_running" not in engine.step_metrics()


async def test_the_log_lies_in_the_run_and_the_key_in_no_argument(start, tmp_path):
    engine = start()
    assert "serving" in (tmp_path / "run" / "vllm.log").read_text()
    key = engine.server.client._http.headers["Authorization"].removeprefix("Bearer ")
    assert len(key) > 20
    assert key not in " ".join(state(engine)["arguments"])


async def test_on_a_shared_device_the_server_sleeps_while_the_trainer_trains(start):
    engine = start(sleeps=True, token_s=0.05)
    under_way = asyncio.create_task(sampled(engine, max_tokens=10))
    await asyncio.sleep(0.2)

    def train():
        with engine.asleep():
            asked = asyncio.run_coroutine_threadsafe(sampled(engine), loop)
            time.sleep(0.3)
            return state(engine)["asleep"], under_way.done(), asked

    loop = asyncio.get_running_loop()
    asleep, ended_before, asked = await asyncio.to_thread(train)
    assert asleep
    assert ended_before
    assert len(await under_way) == 10
    # a request that came meanwhile waited, and the server would have refused it asleep
    assert len(await asyncio.wrap_future(asked)) == 4
    assert state(engine)["asleep"] is False


async def test_an_adapter_that_comes_while_the_server_sleeps_waits(start):
    """An older step that a request names is loaded by that request, whatever the trainer does."""
    engine = start(sleeps=True)

    def train():
        with engine.asleep():
            loading = pool.submit(engine.publish, "m@1", adapter())
            time.sleep(0.3)
            return loading, loading.done(), state(engine)["adapters"]

    with ThreadPoolExecutor(1) as pool:
        loading, done, adapters = await asyncio.to_thread(train)
        assert (done, adapters) == (False, {})
        await asyncio.wrap_future(loading)
    assert len(await sampled(engine, adapter_name="m@1")) == 4


async def test_what_the_trainer_keeps_for_later_is_freed_before_the_server_wakes(
    start, monkeypatch
):
    engine, asleep_when_freed = start(sleeps=True), []
    monkeypatch.setattr(
        torch.cuda, "empty_cache", lambda: asleep_when_freed.append(state(engine)["asleep"])
    )

    def fail():
        with engine.asleep():
            raise ValueError

    with pytest.raises(ValueError):
        await asyncio.to_thread(fail)
    assert asleep_when_freed == [True]
    assert state(engine)["asleep"] is False


async def test_what_a_failed_step_computed_is_freed_before_the_server_wakes(start, monkeypatch):
    engine, made, held = start(sleeps=True), [], []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: held.append(made[0]() is not None))

    def compute():
        computed = torch.ones(8)
        made.append(weakref.ref(computed))
        raise MemoryError

    def step():
        try:
            compute()
        except MemoryError as error:
            raise BackendError("out of memory") from error

    def train():
        with engine.asleep():
            step()

    with pytest.raises(BackendError):
        await asyncio.to_thread(train)
    assert held == [False]


async def test_elsewhere_it_does_not_sleep(start):
    engine = start()
    with engine.asleep():
        assert len(await sampled(engine)) == 4
        assert state(engine)["asleep"] is False


async def test_all_servers_on_the_trainers_device_sleep_while_one_model_is_trained(start, tmp_path):
    engines = [start(sleeps=True), start(sleeps=True)]
    pool = VllmPool({tmp_path / str(place): engine for place, engine in enumerate(engines)})

    def train():
        with pool.asleep():
            return [state(engine)["asleep"] for engine in engines]

    assert await asyncio.to_thread(train) == [True, True]
    assert [state(engine)["asleep"] for engine in engines] == [False, False]
    # one that has ended is no reason to train nothing
    engines[1]._supervisor.ended = EngineError("it failed too often")
    assert await asyncio.to_thread(train) == [True, False]


async def test_a_server_that_dies_in_its_sleep_comes_back_awake(start):
    engine = start(sleeps=True)

    def train():
        with engine.asleep():
            os.kill(state(engine)["pid"], signal.SIGKILL)
            time.sleep(2.0)

    await asyncio.to_thread(train)
    assert len(await sampled(engine)) == 4


async def test_closing_ends_the_server_and_what_comes_later_says_so(start, tmp_path):
    engine = start()
    pid = state(engine)["pid"]
    await engine.close()
    await engine.close()
    assert gone(pid)
    assert not (tmp_path / "run" / "serving").exists()
    with pytest.raises(EngineError, match="closed"):
        await sampled(engine)


def test_a_start_is_told_in_a_log_when_it_begins_and_when_it_is_done(start, monkeypatch, capsys):
    monkeypatch.setenv("FAKE_START_S", "1.5")
    wait_ready(start(wait=False), progress=True)
    assert capsys.readouterr().err.count("start vLLM") == 2
