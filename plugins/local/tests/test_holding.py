"""The models and steps that a backend holds: how long, and under which names."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from types import SimpleNamespace

import pytest

import art_core as art
from art_core.base.errors import EngineError
from art_core.log.rows import read_rows
from art_local.session import gpu_timer
from art_local.vllm.pool import VllmPool
from waiting import until_async

OPTIONS = {"device": "cpu", "dtype": "float32", "lora_rank": 4, "lora_alpha": 8, "progress": False}


@pytest.fixture
def make_model(tiny_directory, tmp_path):
    def make(name, **options):
        given = {"project": "tests", "base_model": str(tiny_directory), "sinks": [], **options}
        return art.TrainableModel(name=name, base_path=tmp_path / "runs", **given)

    return make


@pytest.fixture
async def backend():
    made = art.backend("local", **OPTIONS, gpu_cost_per_hour_usd=3600.0)
    yield made
    await made.close()


def engines():
    return sum(t.name == "art-engine" for t in threading.enumerate())


def endpoints():
    return sum(t.name == "art-endpoint" for t in threading.enumerate())


async def busy(backend):
    """Keep the backend's worker busy; return the work and what ends it."""
    begun, go_on = threading.Event(), threading.Event()

    def work():
        begun.set()
        return go_on.wait(60)

    task = asyncio.create_task(backend._on_worker(work))
    await asyncio.to_thread(begun.wait, 60)
    return task, go_on


@pytest.fixture
def ticks(monkeypatch):
    """The clock by which devices are charged."""
    made = SimpleNamespace(now=100.0, monotonic=lambda: made.now)
    monkeypatch.setattr(gpu_timer, "time", made)
    return made


async def test_time_in_which_no_model_is_held_costs_nothing(backend, make_model, ticks):
    first, second = make_model("first"), make_model("second")
    for model, seconds in ((first, 1.0), (second, 2.0)):
        await model.register(backend)
        ticks.now += seconds
        await backend.unregister(model)
        ticks.now += 50.0
    row = await second.log(metrics={"x": 1.0}, split="train", step=0)
    # 3,600 dollars an hour are one a second
    assert row.metrics["costs/cum/gpu"] == 2.0
    await first.close()
    await second.close()


async def test_time_after_a_model_that_could_not_be_registered_costs_nothing(
    backend, make_model, tmp_path
):
    (tmp_path / "empty").mkdir()
    broken, model = make_model("broken", base_model=str(tmp_path / "empty")), make_model("model")
    with pytest.raises(art.ConfigError, match="is not a base model"):
        await broken.register(backend)
    assert backend._timer.take() == 0.0
    await model.register(backend)
    assert backend._timer.take() > 0.0
    await broken.close()
    await model.close()


async def test_a_model_whose_registering_was_cancelled_is_closed_with_the_backend(
    make_model, monkeypatch
):
    backend, before, loading = art.backend("local", **OPTIONS), engines(), threading.Event()
    open_session = backend._open_session

    def taken(model, step):
        loading.set()
        return open_session(model, step)

    monkeypatch.setattr(backend, "_open_session", taken)
    model = make_model("tiny")
    registering = asyncio.create_task(model.register(backend))
    await asyncio.to_thread(loading.wait, 60)
    registering.cancel()
    await asyncio.gather(registering, return_exceptions=True)
    await backend.close()
    assert engines() == before
    await model.close()


@pytest.mark.parametrize("closing", [False, True])
async def test_an_unregistering_that_was_cancelled_stops_serving_all_the_same(make_model, closing):
    before = (engines(), endpoints())
    backend, model = art.backend("local", **OPTIONS), make_model("tiny")
    await model.register(backend)
    before_it, go_on = await busy(backend)
    leaving = asyncio.create_task(backend.unregister(model))
    await asyncio.sleep(0.1)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    closed = asyncio.create_task(backend.close()) if closing else None
    await asyncio.sleep(0.1)
    go_on.set()
    await before_it
    await (closed or backend._on_worker(lambda: None))
    assert (engines(), endpoints()) == before
    await backend.close()
    await model.close()


async def test_a_step_that_was_cancelled_counts_and_its_costs_stand_in_the_next_row(
    backend, make_model, monkeypatch, ticks
):
    model = make_model("tiny")
    await model.register(backend)
    (session,) = backend._sessions.values()
    step, begun, go_on = session.trainer.step, threading.Event(), threading.Event()

    def slowly(*args, **options):
        begun.set()
        go_on.wait(60)
        ticks.now += 2.0
        return step(*args, **options)

    monkeypatch.setattr(session.trainer, "step", slowly)
    attempts = [art.TrajectoryGroup([art.Trajectory(reward=r) for r in (0.0, 1.0)])]
    training = asyncio.create_task(model.train(attempts))
    await asyncio.to_thread(begun.wait, 60)
    training.cancel()
    await asyncio.gather(training, return_exceptions=True)
    go_on.set()
    monkeypatch.setattr(session.trainer, "step", step)
    await model.train(attempts)
    rows = [row for row, *_ in read_rows(model.run_dir / "history.jsonl")]
    assert [row.step for row in rows] == [2]
    # 3,600 dollars an hour are one a second
    assert rows[0].metrics["costs/gpu"] == 2.0
    assert [c.step for c in await model.checkpoints()] == [1, 2]
    await model.close()


async def test_a_step_that_waits_when_the_backend_is_closed_says_so(make_model):
    backend, model = art.backend("local", **OPTIONS), make_model("tiny")
    await model.register(backend)
    before_it, go_on = await busy(backend)
    waiting = asyncio.create_task(backend.train(model, []))
    await asyncio.sleep(0)
    closing = asyncio.create_task(backend.close())
    await asyncio.sleep(0.2)
    go_on.set()
    await closing
    assert await before_it
    with pytest.raises(art.BackendError, match="the local backend is closed"):
        await waiting
    await model.close()


def test_models_of_one_name_have_adapters_of_their_own(tmp_path):
    """Two runs may share a name, and their adapters a server."""
    pool = VllmPool({tmp_path: object()})

    def named(name, *used):
        return pool.share(tmp_path, name, used, start=object).adapter_name

    assert named("a") == "a"
    assert named("a", "a") == "a-2"
    assert named("a", "a-2") == "a"
    assert named("a-2", "a", "a-2") == "a-2-2"


async def test_the_newest_step_and_the_one_before_stay_in_memory(backend, make_model):
    model = make_model("tiny")
    await model.register(backend)
    (session,) = backend._sessions.values()
    for _ in range(3):
        await backend.train(model, [])
    assert session.engine.adapters == ["base", "tiny@2", "tiny@3"]
    await model.close()


@pytest.mark.parametrize("closing", [False, True])
async def test_weights_are_gone_with_their_model(make_model, closing):
    """On a GPU their memory is the next model's, and Python collects garbage when it likes."""
    backend, model = art.backend("local", **OPTIONS), make_model("tiny")
    await model.register(backend)
    await backend.train(model, [])
    policies = [session.policy for session in backend._sessions.values()]
    tensors = [t for p in policies for t in (*p.model.parameters(), *p.serving.values())]
    held = [weakref.ref(tensor) for tensor in tensors]
    del policies, tensors
    gc.collect()
    gc.disable()
    try:
        await (backend.close() if closing else backend.unregister(model))
        # a thread that ends holds them for a moment more
        await until_async(lambda: all(reference() is None for reference in held), 20.0)
        assert [reference() for reference in held] == [None] * len(held)
        assert held
    finally:
        gc.enable()
    await backend.close()
    await model.close()


async def test_a_step_that_is_asked_for_while_it_is_unloaded_is_served(make_model, monkeypatch):
    backend = art.backend("local", **OPTIONS, served_steps=1)
    model = make_model("tiny")
    await model.register(backend)
    await backend.train(model, [])
    await ask(model, "tiny")
    (session,) = backend._sessions.values()
    unload, begun, go_on = session.engine.unload, threading.Event(), threading.Event()

    def slowly(name):
        begun.set()
        go_on.wait(60)
        unload(name)

    monkeypatch.setattr(session.served._loaded, "_unload", slowly)
    training = asyncio.create_task(backend.train(model, []))
    await asyncio.to_thread(begun.wait, 60)
    asking = asyncio.create_task(ask(model, "tiny@1"))
    await asyncio.sleep(1.0)
    go_on.set()
    await training
    assert (await asking).model == (await ask(model, "tiny@1")).model == "tiny@1"
    await model.openai_client().close()
    await backend.close()
    await model.close()


async def ask(model, name):
    messages = [{"role": "user", "content": "go"}]
    return await model.openai_client().chat.completions.create(
        model=name, messages=messages, max_tokens=2
    )


async def test_a_step_that_was_neither_served_nor_stored_says_so(backend, make_model, monkeypatch):
    model = make_model("tiny")
    await model.register(backend)
    (session,) = backend._sessions.values()

    def refuse(*_):
        raise EngineError("no room for the adapter")

    monkeypatch.setattr(session.engine, "publish", refuse)
    (model.run_dir / "checkpoints").write_text("in the way")
    with pytest.raises(art.BackendError, match="step 1 is trained, not served, but checkpoint 1"):
        await backend.train(model, [])
    await model.close()
