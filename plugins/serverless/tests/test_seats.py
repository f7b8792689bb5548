"""Models that are trained, used, put to sleep and deleted at the same time; jobs that go wrong."""

from __future__ import annotations

import asyncio

import pytest

from art_core.testing.echo import EchoBackend
from art_serverless.protocol import Address
from art_serverless.server.errors import RefusedError
from art_serverless.server.inference import Inference
from art_serverless.server.seats import Seats
from art_serverless.server.store import Store
from art_serverless.server.work import MOST_BEGUN, Work

ADDRESS = Address(entity="local", project="demo", name="agent")


@pytest.fixture
async def held(tmp_path):
    """The server's parts without HTTP: store, seats, work and a stored model."""
    store = Store(tmp_path)
    seats = Seats(backend=EchoBackend(), directory=tmp_path, base_models={})
    yield store, seats, Work(store=store, seats=seats), store.add_model(ADDRESS, "base")
    await seats.close()
    store.close()


async def done(work):
    while work._tasks:
        await asyncio.sleep(0.01)


async def test_a_model_in_use_is_not_deleted_under_its_user(held):
    _, seats, _, stored = held
    async with seats.using(stored) as model:
        with pytest.raises(RefusedError, match="is in use"):
            await seats.remove(stored)
        assert model.run_dir.is_dir()
    await seats.remove(stored)
    assert not model.run_dir.exists()
    with pytest.raises(RefusedError, match="was deleted"):
        async with seats.using(stored):
            pass
    assert not model.run_dir.exists()


async def test_weights_that_are_in_no_checkpoint_are_not_put_to_sleep(held):
    _, seats, _, stored = held
    async with seats.using(stored) as model:
        await model.train([], save_checkpoint=False)
    assert await seats.put_to_sleep(0.0) == []
    async with seats.using(stored) as model:
        await model.train([])
    assert await seats.put_to_sleep(0.0) == [stored.id]


async def test_a_model_that_could_not_be_unloaded_can_be_loaded_again(held, monkeypatch):
    _, seats, _, stored = held
    async with seats.using(stored):
        pass

    async def unregister(self, model):
        raise RuntimeError("the device is gone")

    with monkeypatch.context() as patch:
        patch.setattr(EchoBackend, "unregister", unregister)
        with pytest.raises(RuntimeError, match="the device is gone"):
            await seats.put_to_sleep(0.0)
    async with seats.using(stored) as model:
        await model.train([])


async def test_a_job_of_a_model_that_was_deleted_meanwhile_is_forgotten(held):
    store, seats, work, stored = held
    job = store.add_job(stored.id, {}, b"[]", "key")
    await seats.remove(stored)
    with store._db.writing() as db:
        db.execute("delete from models")
    work.add(job)
    await done(work)
    assert store.unfinished() == []
    assert not store.groups.of(job.id).exists()


async def test_a_job_that_takes_the_server_down_each_time_is_given_up(held):
    store, _, work, stored = held
    job = store.add_job(stored.id, {}, b"[]", "key")
    for _ in range(MOST_BEGUN):
        store.begin(job.id)
        store.train(job.id, 0)  # and then the server died
    assert work.resume() == 1
    await done(work)
    (told,) = store.events(job.id, 0, 10)
    assert told["type"] == "training_failed"
    assert f"ended {MOST_BEGUN} times" in told["data"]["error_message"]
    assert store.unfinished() == []


async def test_a_job_whose_model_takes_the_server_down_while_it_loads_is_given_up(held, tmp_path):
    store, _, _, stored = held
    loads = []

    class Stuck(EchoBackend):
        async def register(self, model):
            loads.append(model.name)
            await asyncio.Event().wait()

    job = store.add_job(stored.id, {}, b"[]", "key")
    for n in range(MOST_BEGUN + 1):
        seats = Seats(backend=Stuck(), directory=tmp_path, base_models={})
        work = Work(store=store, seats=seats)
        assert work.resume() == 1
        while work._tasks and len(loads) == n:
            await asyncio.sleep(0.01)
        await work.stop(0.0)  # as far as the job is concerned, a kill
        await seats.close()
    assert len(loads) == MOST_BEGUN
    (told,) = store.events(job.id, 0, 10)
    assert f"ended {MOST_BEGUN} times" in told["data"]["error_message"]
    assert store.unfinished() == []


def test_files_that_no_job_names_are_swept_when_the_server_starts(tmp_path):
    store = Store(tmp_path)
    job = store.add_job("m", {}, b"[]", "key")
    store.close()
    stray = [tmp_path / "jobs" / name for name in ("gone.json", ".half.tmp")]
    for file in stray:
        file.write_text("[]")
    store = Store(tmp_path)
    assert [file.name for file in (tmp_path / "jobs").iterdir()] == [f"{job.id}.json"]
    store.close()


async def test_a_file_of_an_earlier_server_is_read(tmp_path):
    store = Store(tmp_path)
    job = store.add_job("m", {}, b"[]", "key")
    with store._db.writing() as db:
        db.execute("alter table jobs drop column begun")
        db.execute("alter table jobs drop column digest")
        db.execute("alter table models drop column costs_told")
    store.close()
    store = Store(tmp_path)
    assert store.unfinished() == [job]
    assert (
        store.add_job("m", {"learning_rate": 1.0}, b"[]", "key") is None
    )  # it can't be told apart
    store.close()


async def test_a_stream_whose_client_is_gone_before_it_begins_holds_nothing(held):
    store, seats, _, stored = held
    inference = Inference(store=store, seats=seats, timeout_s=10.0)
    question = {"model": "agent", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    response = await inference.chat(question)
    assert seats._seats[stored.id].users == 1

    async def send(message):
        raise OSError("the client is gone")

    with pytest.raises(Exception, match=r"^(the client is gone)?$"):
        await response({"type": "http", "asgi": {"spec_version": "2.4"}}, None, send)
    assert seats._seats[stored.id].users == 0
    await inference.close()


async def test_every_cost_leaf_of_a_step_is_told_and_no_sum(held):
    store, seats, work, stored = held
    async with seats.using(stored) as model:
        model.metrics_builder("eval").add_cost("eval/tinker_sample", 0.25)
        model.metrics_builder("train").add_cost("train/tinker_sample", 0.5)
        model.metrics_builder("train").add_cost("train/tinker_train", 1.0)
    work.add(store.add_job(stored.id, {}, b"[]", "key"))
    await done(work)
    step = store.events(store.job_of(stored.id, "key").id, 0, 10)[1]["data"]
    assert {key: value for key, value in step.items() if key.startswith("costs/")} == {
        "costs/eval/tinker_sample": 0.25,
        "costs/train/tinker_sample": 0.5,
        "costs/train/tinker_train": 1.0,
    }


async def test_what_a_model_cost_between_its_steps_is_told_once(held):
    """As what a device costs that is held until a model sleeps: a row of its own takes it."""
    store, seats, work, stored = held

    def told(key):
        (step,) = (
            event["data"]
            for event in store.events(store.job_of(stored.id, key).id, 0, 10)
            if event["type"] == "gradient_step"
        )
        return {name: usd for name, usd in step.items() if name.startswith("costs/")}

    for key, usd in (("first", 0.1), ("second", 0.2)):
        async with seats.using(stored) as model:
            model.metrics_builder("train").add_cost("gpu", usd)
        assert await seats.put_to_sleep(0.0) == [stored.id]
        work.add(store.add_job(stored.id, {}, b"[]", key))
        await done(work)
    assert told("first") == {"costs/gpu": 0.1}
    assert told("second") == {"costs/gpu": 0.2}
