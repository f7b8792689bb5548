"""A model that is made again in one process takes its run over from the older object."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest

import art_core as art
from art_core.base.errors import HistoryError
from art_core.log.rows import read_rows
from art_core.run import run as runs
from art_core.run.exits import program
from art_core.testing.echo import EchoBackend
from waiting import until


class Place:
    """A sink that keeps what it gets, and can be held up."""

    def __init__(self):
        self.steps, self.closed, self.free = [], [], threading.Event()
        self.free.set()

    def open(self, run): ...

    def write(self, rows):
        self.free.wait(60)
        self.steps += [row.step for row in rows]

    def close(self, run):
        self.closed.append(run.status)


def spec(place, **options):
    return art.SinkSpec(name="own", create=lambda: place, summary="", **options)


@pytest.fixture
def make(tmp_path):
    made = []

    def model(sinks=(), base_path=tmp_path / "runs", kind=art.Model, **options):
        options |= {"sinks": list(sinks), "plugins": art.Plugins()}
        made.append(kind(name="m", project="p", base_path=base_path, **options))
        return made[-1]

    yield model
    for each in made:
        if each._run is not None:
            each._run.close()


def steps_of(model):
    return [(row.seq, row.step) for row, _ in read_rows(model.run_dir / "history.jsonl")]


async def log(model, step, **more):
    return await model.log(metrics={"reward/mean": 0.5}, split="train", step=step, **more)


async def test_the_newer_object_goes_on_and_the_older_says_which_one_has_the_run(make, caplog):
    older, newer = make(), make()
    await log(older, 1)
    await log(newer, 2)
    assert "p/m: the Model made at " in caplog.text
    assert f"takes the run over from the {older._owner}, at step 1" in caplog.text
    assert f"{__file__}:" in newer._owner
    with pytest.raises(HistoryError) as raised:
        await log(older, 3)
    assert f"belongs to a newer model object, the {newer._owner}. Use that one" in str(raised.value)
    assert await older.close() == {}
    newest = make()
    await log(newest, 3)
    with pytest.raises(HistoryError, match="newer model object") as raised:
        await older.get_step()
    assert newest._owner in str(raised.value)
    await newest.close()
    assert steps_of(newest) == [(1, 1), (2, 2), (3, 3)]
    assert newest._run.info.attempt == 3


async def test_an_object_out_of_reach_is_taken_over_too(make, monkeypatch, tmp_path):
    for step in (1, 2):
        options = {"sinks": [], "plugins": art.Plugins(), "base_path": tmp_path}
        model = art.Model(name="m", project="p", **options)
        await log(model, step)
        gc.collect()
    here = [run for run in program.runs if run.info.run_dir.is_relative_to(tmp_path)]
    assert len(here) == 1
    await model.close()
    assert steps_of(model) == [(1, 1), (2, 2)]
    await log(again := make(base_path=tmp_path), 3)
    assert again.run.info.attempt == 3


async def test_what_waited_is_written_and_what_comes_later_goes_to_the_newer_object(make):
    older, newer = make(), make()
    await log(older, 1)
    builder = older.metrics_builder()
    builder.add_cost("train/judge", 0.5)
    newer.run.record("train", 2)
    builder.add_cost("train/judge", 0.25)
    builder.add_metric("own", 3.0)
    builder.add_gpu_time(art.GpuTime(device="card", seconds=3600, usd_per_hour=1.0))
    builder.add_data(scenario_ids=["late"])
    row = await log(newer, 3)
    assert row.metrics["costs/cum/all"] == 1.75
    assert row.metrics["costs/train/judge"] == 0.25
    assert (row.metrics["train/own"], row.scenario_ids) == (3.0, ("late",))
    assert [receipt["usd"] for receipt in row.receipts] == [1.0]
    assert steps_of(newer) == [(1, 1), (2, 1), (3, 2), (4, 3)]


async def test_costs_without_a_builder_go_to_the_newer_object(make):
    older, newer = make(), make()
    await log(older, 1)
    await log(newer, 2)
    assert older._default_builder not in runs.open_builders()
    assert newer._default_builder in runs.open_builders()


async def test_a_row_that_fails_after_the_takeover_gives_its_costs_to_the_newer_object(make):
    older, newer = make(), make()
    await log(older, 1)
    older.metrics_builder().add_cost("gpu", 0.5)
    run = older.run
    with pytest.raises(OSError), run.ledger.taking("train", run.history):
        _ = newer.run
        raise OSError
    assert (await log(newer, 2)).metrics["costs/cum/all"] == 0.5


async def test_a_cost_that_is_added_while_the_run_is_taken_over_goes_to_the_newer_object(
    make, monkeypatch
):
    older, newer = make()._ledger, make()

    class Lock:
        """Is held by the takeover when the cost comes."""

        def __enter__(self):
            monkeypatch.setattr("art_core.costs.ledger._lock", threading.RLock())
            older.hand_over(newer._ledger)

        def __exit__(self, *error): ...

    monkeypatch.setattr("art_core.costs.ledger._lock", Lock())
    older.add("", "costs/gpu", 0.5)
    assert not older.waiting
    assert (await log(newer, 1)).metrics["costs/cum/all"] == 0.5


async def test_groups_that_the_older_object_logged_are_not_counted_again(make):
    groups = [art.TrajectoryGroup([art.Trajectory(reward=1.0)])]
    older, newer = make(), make()
    await log(older, 1, trajectories=groups)
    row = await log(newer, 2, trajectories=groups)
    assert row.metrics["data/cum/num_trajectories"] == 1.0


@pytest.mark.parametrize("backlog", [True, False])
async def test_each_row_reaches_a_sink_once_although_the_older_follower_is_late(make, backlog):
    first, second = Place(), Place()
    first.free.clear()
    older = make([spec(first, backlog=backlog)])
    follower = older.run.delivery.followers[0]
    until(lambda: follower.opened)
    await log(older, 1)
    newer = make([spec(second, backlog=backlog)])
    await log(newer, 2)
    first.free.set()
    reports = await newer.close()
    assert reports["own"].undelivered == 0
    assert (first.steps, second.steps) == ([1], [2])
    assert (first.closed, second.closed) == (["running"], ["finished"])


async def test_rows_that_the_older_follower_could_not_deliver_follow_with_the_newer(make):
    first, second = Place(), Place()
    first.write = lambda rows: 1 / 0
    older = make([spec(first)])
    await log(older, 1)
    newer = make([spec(second)])
    await log(newer, 2)
    reports = await newer.close(timeout=30.0)
    assert (reports["own"].undelivered, second.steps) == (0, [1, 2])


async def test_a_run_is_one_by_whatever_path_it_is_opened(make, tmp_path, monkeypatch):
    older = make()
    await log(older, 1)
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    for step, base_path in enumerate((tmp_path / "link", "runs", tmp_path / "x" / ".." / "runs")):
        newer = make(base_path=base_path)
        (tmp_path / "x").mkdir(exist_ok=True)
        await log(newer, step + 2)
    await newer.close()
    assert steps_of(newer) == [(1, 1), (2, 2), (3, 3), (4, 4)]


async def test_a_run_that_cannot_write_what_waits_is_not_taken_over(make, monkeypatch):
    older, newer = make(), make()
    await log(older, 1)
    older.metrics_builder().add_cost("gpu", 0.5)
    with monkeypatch.context() as full, pytest.raises(HistoryError, match="cannot write"):
        full.setattr("art_core.log.history.os.write", lambda fd, data: 0)
        await log(newer, 2)
    row = await log(older, 2)
    assert row.metrics["costs/cum/all"] == 0.5


async def test_a_run_that_is_just_being_closed_is_not_taken_over(make):
    older, newer = make(), make()
    await log(older, 1)
    older.run._closed = True
    with pytest.raises(HistoryError, match="the run p/m is just being closed by the Model made at"):
        await log(newer, 2)
    older.run._closed = False


async def test_a_log_is_free_when_the_sinks_of_the_newer_object_cannot_begin(make, monkeypatch):
    older, newer = make(), make()
    await log(older, 1)

    def fail(*given):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as threads, pytest.raises(RuntimeError):
        threads.setattr(runs.Delivery, "start", fail)
        await log(newer, 2)
    await log(make(), 2)


def test_a_forked_process_has_no_open_run(make, monkeypatch):
    run = make().run
    path = run.history.path
    assert runs._open_run(path) is run
    run._lock.acquire()
    runs.renew_locks()
    assert run.record("train", 1).seq == 1
    with monkeypatch.context() as child:
        child.setattr(program, "runs", list(program.runs))
        child.setattr(program, "pid", -1)
        program.watch()
        assert runs._open_run(path) is None


class Backend(EchoBackend):
    """An echo that keeps its requests, and waits in a step until the test continues it."""

    def __init__(self):
        super().__init__()
        self.go, self.begun, self.calls = asyncio.Event(), asyncio.Event(), []
        self.go.set()

    async def train(self, model, groups, **options):
        self.begun.set()
        await self.go.wait()
        return await super().train(model, groups, **options)

    async def unregister(self, model):
        self.calls.append("unregister")
        await super().unregister(model)

    async def close(self):
        self.calls.append("close")
        await super().close()


async def groups_of(model):
    async def rollout(reward):
        ask = [{"role": "user", "content": "yes"}]
        completion = await model.openai_client().chat.completions.create(
            model=model.get_inference_name(), messages=ask
        )
        return art.Trajectory(messages_and_choices=[*ask, completion.choices[0]], reward=reward)

    group = art.TrajectoryGroup(rollout(reward) for reward in (0.0, 1.0))
    return await art.gather_trajectory_groups([group], pbar_desc=None)


def trainable(make, **options):
    return make(kind=art.TrainableModel, base_model="echo-base", **options)


async def test_a_step_that_is_trained_meanwhile_gets_its_row_and_the_next_one_is_refused(make):
    backend, older = Backend(), trainable(make)
    await older.register(backend)
    groups = await groups_of(older)
    backend.go.clear()
    step = asyncio.create_task(older.train(groups))
    await backend.begun.wait()
    newer = trainable(make)
    assert newer.run.last_step == 0
    backend.go.set()
    assert (await step).step == 1
    assert newer.run.last_step == 1
    with pytest.raises(HistoryError, match="newer model object"):
        await older.train(groups)
    await newer.register(backend)
    await newer.train(await groups_of(newer))
    assert (await newer.get_step(), backend.calls) == (2, [])
    await older.close()
    await newer.close()
    await backend.close()
    assert steps_of(newer) == [(1, 1), (2, 2)]


async def test_another_backend_is_left_before_the_newer_object_is_registered(make):
    first, second = Backend(), Backend()
    older = trainable(make)
    await older.register(first)
    newer = trainable(make)
    await newer.register(second)
    assert first.calls == ["unregister"]
    await newer.register(second)
    assert first.calls == ["unregister"]
    await newer.close()
    for backend in (first, second):
        await backend.close()


@pytest.mark.parametrize("again", [True, False], ids=["the same", "another"])
async def test_a_backend_that_the_older_object_made_is_closed_once(make, monkeypatch, again):
    made = []

    def backend(name):
        made.append(Backend())
        return made[-1]

    monkeypatch.setattr("art_core.model.trainable.make_backend", backend)
    older = trainable(make, backend="echo")
    await older.register()
    newer = trainable(make)
    await newer.register(older.backend if again else "echo")
    assert len(made) == (1 if again else 2)
    assert made[0].calls == ([] if again else ["close"])
    await older.close()
    await newer.train(await groups_of(newer))
    await newer.close()
    assert [each.calls.count("close") for each in made] == ([1] if again else [2, 1])
