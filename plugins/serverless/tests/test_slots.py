"""Models that are trained, used, put to sleep and deleted at the same time; jobs that go wrong."""

from __future__ import annotations

import asyncio
import resource
import signal
import sqlite3
from contextlib import contextmanager

import pytest

from art_core.endpoint.errors import RequestError
from art_core.testing.echo import EchoBackend
from art_serverless.protocol import Address
from art_serverless.server.app import refusal
from art_serverless.server.inference import Inference
from art_serverless.server.slots import ModelSlots
from art_serverless.server.store import Database, GroupFiles, Store
from art_serverless.server.work import MAX_ATTEMPTS, Work

ADDRESS = Address(entity="local", project="demo", name="agent")


@pytest.fixture
async def held(tmp_path):
    """The server's parts without HTTP: store, slots, work and a stored model."""
    store = Store(tmp_path)
    slots = ModelSlots(backend=EchoBackend(), directory=tmp_path, base_models={})
    yield store, slots, Work(store=store, slots=slots), store.add_model(ADDRESS, "base")
    await slots.close()
    store.close()


async def done(work):
    while work._tasks:
        await asyncio.sleep(0.01)


async def test_a_model_in_use_is_not_deleted_under_its_user(held):
    _, slots, _, stored = held
    async with slots.using(stored) as model:
        with pytest.raises(RequestError, match="is in use"):
            await slots.remove(stored)
        assert model.run_dir.is_dir()
    await slots.remove(stored)
    assert not model.run_dir.exists()
    with pytest.raises(RequestError, match="was deleted"):
        async with slots.using(stored):
            pass
    assert not model.run_dir.exists()


async def test_weights_that_are_in_no_checkpoint_are_not_put_to_sleep(held):
    _, slots, _, stored = held
    async with slots.using(stored) as model:
        await model.train([], save_checkpoint=False)
    assert await slots.put_to_sleep(0.0) == []
    async with slots.using(stored) as model:
        await model.train([])
    assert await slots.put_to_sleep(0.0) == [stored.id]


async def test_a_model_that_could_not_be_unloaded_can_be_loaded_again(held, monkeypatch):
    _, slots, _, stored = held
    async with slots.using(stored):
        pass

    async def unregister(self, model):
        raise RuntimeError("the device is gone")

    with monkeypatch.context() as patch:
        patch.setattr(EchoBackend, "unregister", unregister)
        with pytest.raises(RuntimeError, match="the device is gone"):
            await slots.put_to_sleep(0.0)
    async with slots.using(stored) as model:
        await model.train([])


async def test_a_job_of_a_model_that_was_deleted_meanwhile_is_forgotten(held):
    store, slots, work, stored = held
    job = store.add_job(stored.id, {}, b"[]", "key")
    await slots.remove(stored)
    with store._db.writing() as db:
        db.execute("delete from models")
    work.add(job)
    await done(work)
    assert store.unfinished() == []
    assert not store.groups.of(job.id).exists()


async def test_a_job_that_takes_the_server_down_each_time_is_given_up(held):
    store, _, work, stored = held
    job = store.add_job(stored.id, {}, b"[]", "key")
    for _ in range(MAX_ATTEMPTS):
        store.count_attempt(job.id)
        store.begin_training(job.id, 0)  # and then the server died
    assert work.resume() == 1
    await done(work)
    (told,) = store.events(job.id, 0, 10)
    assert told["type"] == "training_failed"
    assert f"ended {MAX_ATTEMPTS} times" in told["data"]["error_message"]
    assert store.unfinished() == []


async def test_a_job_whose_model_takes_the_server_down_while_it_loads_is_given_up(held, tmp_path):
    store, _, _, stored = held
    loads = []

    class Stuck(EchoBackend):
        async def register(self, model):
            loads.append(model.name)
            await asyncio.Event().wait()

    job = store.add_job(stored.id, {}, b"[]", "key")
    for n in range(MAX_ATTEMPTS + 1):
        slots = ModelSlots(backend=Stuck(), directory=tmp_path, base_models={})
        work = Work(store=store, slots=slots)
        assert work.resume() == 1
        while work._tasks and len(loads) == n:
            await asyncio.sleep(0.01)
        await work.stop(0.0)  # as far as the job is concerned, a kill
        await slots.close()
    assert len(loads) == MAX_ATTEMPTS
    (told,) = store.events(job.id, 0, 10)
    assert f"ended {MAX_ATTEMPTS} times" in told["data"]["error_message"]
    assert store.unfinished() == []


@pytest.fixture
def full_disk(monkeypatch):
    """Let the next writes of the database fail: `full_disk(3)`; `full_disk()` returns how many did.
    A negative number lets writes fail until it is set anew.
    """
    left, failed = [0], [0]
    whole = Database.writing

    @contextmanager
    def writing(self):
        if left[0]:
            left[0] -= 1
            failed[0] += 1
            raise sqlite3.OperationalError("database or disk is full")
        with whole(self) as db:
            yield db

    def fill(times=None):
        if times is not None:
            left[0], failed[0] = times, 0
        return failed[0]

    monkeypatch.setattr(Database, "writing", writing)
    monkeypatch.setattr("art_serverless.server.work.MIN_PAUSE_S", 0.01)
    return fill


@pytest.mark.parametrize("write", range(4))
async def test_a_full_disk_at_any_write_of_a_job_holds_the_queue_until_there_is_space(
    held, full_disk, monkeypatch, write
):
    store, _, work, stored = held
    jobs = [store.add_job(stored.id, {}, b"[]", str(n)) for n in range(3)]
    names = ("count_attempt", "begin_training", "add_event", "end")
    original = getattr(store, names[write])

    def fills_first(*values):
        if not full_disk():
            full_disk(2)
        return original(*values)

    monkeypatch.setattr(store, names[write], fills_first)
    for job in jobs:
        work.add(job)
    await done(work)
    assert full_disk() == 2
    for step, job in enumerate(jobs, 1):
        events = store.events(job.id, 0, 10)
        assert [event["type"] for event in events] == [
            "training_started",
            "gradient_step",
            "training_ended",
        ]
        assert events[-1]["data"] == {"step": step}
    assert store.unfinished() == []


async def test_a_server_that_stops_while_its_disk_is_full_leaves_the_job_to_the_next(
    held, full_disk
):
    store, slots, work, stored = held
    job = store.add_job(stored.id, {}, b"[]", "key")
    full_disk(-1)
    work.add(job)
    while not full_disk():
        await asyncio.sleep(0.01)
    assert await work.stop(10.0)
    full_disk(0)
    assert [left.id for left in store.unfinished()] == [job.id]
    work = Work(store=store, slots=slots)
    assert work.resume() == 1
    await done(work)
    assert store.unfinished() == []


async def test_a_job_whose_end_cannot_be_recorded_leaves_the_queue_running(
    held, monkeypatch, caplog
):
    store, _, work, stored = held
    jobs = [store.add_job(stored.id, {}, b"[]", str(n)) for n in range(2)]
    end = store.end

    def fails(job_id, *values):
        if job_id == jobs[0].id:
            raise sqlite3.DatabaseError("database disk image is malformed")
        end(job_id, *values)

    monkeypatch.setattr(store, "end", fails)
    for job in jobs:
        work.add(job)
    await done(work)
    assert [left.id for left in store.unfinished()] == [jobs[0].id]
    assert f"the end of job {jobs[0].id} could not be recorded" in caplog.text


def test_a_job_that_could_not_be_kept_leaves_no_file(tmp_path, full_disk):
    store = Store(tmp_path)
    full_disk(1)
    with pytest.raises(sqlite3.OperationalError):
        store.add_job("m", {}, b"[]", "key")
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, most))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            store.add_job("m", {}, b"x" * (2 << 20), "key")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        signal.signal(signal.SIGXFSZ, ignored)
    assert list((tmp_path / "jobs").iterdir()) == []
    error = refusal(caught.value)
    assert (error.status, error.body()["error"]["code"]) == (507, "storage_full")
    store.close()


def test_groups_that_cannot_be_deleted_stop_nothing(tmp_path, caplog):
    files = GroupFiles(tmp_path)
    files.of("job").mkdir()
    files.delete("job")
    assert "the groups of job job could not be deleted" in caplog.text


def test_a_transaction_that_cannot_be_committed_leaves_the_database_usable(tmp_path):
    database = Database(tmp_path / "db.sqlite")

    def fill():
        with database.writing() as db:
            pages = db.execute("pragma page_count").fetchone()[0]
            db.execute(f"pragma max_page_count = {pages + 1}")
            for _ in range(100):
                db.execute(
                    "insert into events (job_id, type, data) values ('j', 't', ?)", ["x" * 4000]
                )

    for _ in range(2):
        with pytest.raises(sqlite3.OperationalError, match="full"):
            fill()
    assert database.rows("select * from events") == []
    with database.writing() as db:
        db.execute("insert into events (job_id, type, data) values ('j', 't', 'd')")
    assert len(database.rows("select * from events")) == 1
    database.close()


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
    )  # it cannot be distinguished
    store.close()


async def test_a_stream_whose_client_is_gone_before_it_begins_holds_nothing(held):
    store, slots, _, stored = held
    inference = Inference(store=store, slots=slots, timeout_s=10.0)
    question = {"model": "agent", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    response = await inference.chat(question)
    assert slots._slots[stored.id].users == 1

    async def send(message):
        raise OSError("the client is gone")

    with pytest.raises(Exception, match=r"^(the client is gone)?$"):
        await response({"type": "http", "asgi": {"spec_version": "2.4"}}, None, send)
    assert slots._slots[stored.id].users == 0
    await inference.close()


async def test_every_cost_leaf_of_a_step_is_told_and_no_sum(held):
    store, slots, work, stored = held
    async with slots.using(stored) as model:
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
    store, slots, work, stored = held

    def told(key):
        (step,) = (
            event["data"]
            for event in store.events(store.job_of(stored.id, key).id, 0, 10)
            if event["type"] == "gradient_step"
        )
        return {name: usd for name, usd in step.items() if name.startswith("costs/")}

    for key, usd in (("first", 0.1), ("second", 0.2)):
        async with slots.using(stored) as model:
            model.metrics_builder("train").add_cost("gpu", usd)
        assert await slots.put_to_sleep(0.0) == [stored.id]
        work.add(store.add_job(stored.id, {}, b"[]", key))
        await done(work)
    assert told("first") == {"costs/gpu": 0.1}
    assert told("second") == {"costs/gpu": 0.2}
