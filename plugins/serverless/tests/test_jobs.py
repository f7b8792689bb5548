"""Jobs that fail, clients and servers that die in the middle: nothing accepted is lost."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path

import attrs
import httpx2
import pytest

import art_core as art
from art_core.base.errors import BackendError
from art_core.testing.backend import QUESTION, ask, attempts
from art_core.testing.echo import EchoBackend
from art_serverless.jobs import JobFailedError
from art_serverless.protocol import Address
from art_serverless.remote_model import Journal, Pending
from art_serverless.server.store import Store
from art_serverless.server.work import MAX_ATTEMPTS
from waiting import until_async

OPTIONS = {"mask_truncated": False}


class Slow(EchoBackend):
    """Its steps wait until they are let go."""

    def __init__(self):
        super().__init__()
        self.go = asyncio.Event()

    async def train(self, model, groups, **options):
        await asyncio.wait_for(self.go.wait(), 20)
        return await super().train(model, groups, **options)


class Failing(EchoBackend):
    async def train(self, model, groups, **options):
        raise BackendError("out of memory on cuda:0", "Lower micro_batch_tokens.")


async def ready(server, connect, make_model):
    backend, model = connect(server), make_model()
    await model.register(backend)
    return backend, model


async def begun(model, groups):
    """Return a step that the server has taken on."""
    step = asyncio.create_task(model.train(groups, **OPTIONS))
    while (pending := Journal(model.run_dir).read()) is None or pending.job_id is None:
        await asyncio.sleep(0.02)
    return step


async def closed(backend, model):
    await model.close()
    await backend.close()


async def test_a_job_that_fails_gives_its_reason_and_the_run_goes_on(serving, connect, make_model):
    server = serving(Failing())
    backend, model = await ready(server, connect, make_model)
    for _ in range(2):
        with pytest.raises(
            JobFailedError, match=r"out of memory on cuda:0. Lower micro_batch_tokens"
        ):
            await model.train(await attempts(model, (0.0, 1.0)), **OPTIONS)
        assert await backend.step(model) == 0
        assert Journal(model.run_dir).read() is None
    await closed(backend, model)


async def test_trajectories_without_token_ids_fail_with_the_remedy(serving, connect, make_model):
    backend, model = await ready(serving(), connect, make_model)
    choice = {"message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
    group = art.TrajectoryGroup(
        art.Trajectory(messages_and_choices=[choice], reward=reward) for reward in (0.0, 1.0)
    )
    with pytest.raises(
        JobFailedError, match=r"not an answer of this model.*token_ids and logprobs"
    ):
        await model.train([group], **OPTIONS)
    await closed(backend, model)


async def test_a_cancelled_wait_leaves_the_job_running_and_the_next_step_finds_it(
    serving, connect, make_model
):
    slow = Slow()
    server = serving(slow)
    backend, model = await ready(server, connect, make_model)
    groups = await attempts(model, (0.0, 1.0))
    step = await begun(model, groups)
    step.cancel()
    with pytest.raises(asyncio.CancelledError):
        await step
    server.set(slow.go)
    result = await model.train(await attempts(model, (0.0, 1.0)), **OPTIONS)
    assert result.step == 2
    steps = [row.step for row in read(model) if row.split == "train"]
    assert steps == [1, 2]
    await closed(backend, model)


def read(model):
    return [
        art.MetricsRow.from_line(line)
        for line in (model.run_dir / "history.jsonl").read_bytes().splitlines()
    ]


async def test_a_client_that_died_finds_its_job_when_the_model_registers(
    serving, connect, make_model, caplog
):
    server = serving()
    backend, model = await ready(server, connect, make_model)
    pending = Pending.new(backend._models.of(model).record.id, 1)
    Journal(model.run_dir).write(pending)  # and then the answer to the request was lost
    groups = await attempts(model, (0.0, 1.0))
    await backend._api.submit(pending.model_id, groups, OPTIONS, key=pending.key)
    await closed(backend, model)
    backend, model = await ready(server, connect, make_model)
    assert await backend.step(model) == 1
    last = read(model)[-1]
    assert (last.split, last.step) == ("train", 1)
    assert last.metrics["data/step_trainer_tokens"] > 0
    assert last.metrics["costs/gpu"] > 0
    assert Journal(model.run_dir).read() is None
    assert "was under way" in caplog.text
    await closed(backend, model)


async def test_a_job_that_is_found_again_has_the_price_of_its_own_time(
    serving, connect, make_model
):
    server = serving()
    backend, model = connect(server, cost_per_hour_usd=3600.0), make_model()
    await model.register(backend)
    pending = Pending.new(backend._models.of(model).record.id, 1)
    Journal(model.run_dir).write(pending)
    job_id = await backend._api.submit(pending.model_id, [], OPTIONS, key=pending.key)
    while not any(e.type == "gradient_step" for e in await backend._api.events(job_id, None)):
        pass
    store = Store(server.settings.directory)
    with store._db.writing() as db:
        db.execute(
            "update events set data = ? where type = 'gradient_step'",
            ('{"time/step_trainer_s": 100.0}',),
        )
    store.close()
    await model.register(backend)
    assert model.run.history.last.metrics["costs/gpu"] == pytest.approx(100.0)
    await closed(backend, model)


async def test_a_model_that_slept_is_loaded_within_the_time_for_registering(
    serving, connect, make_model
):
    class SlowToLoad(EchoBackend):
        async def register(self, model):
            await asyncio.sleep(1.5)
            return await super().register(model)

    server = serving()
    await closed(*await ready(server, connect, make_model))
    server.stop()
    again = serving(SlowToLoad(), directory=server.settings.directory)
    # longer than a request may take
    backend, model = connect(again, request_timeout_s=0.5, register_timeout_s=60.0), make_model()
    await model.register(backend)
    answer = (await ask(model)).message.content
    assert answer and QUESTION["content"].startswith(answer)
    await closed(backend, model)


async def test_two_steps_at_once_follow_each_other_and_count_once(serving, connect, make_model):
    slow = Slow()
    server = serving(slow)
    backend, model = await ready(server, connect, make_model)
    groups = await attempts(model, (0.0, 1.0))
    first = await begun(model, groups)
    others = [asyncio.create_task(model.train(groups, **OPTIONS)), model.register(backend)]
    await asyncio.sleep(0.2)
    server.set(slow.go)
    await asyncio.gather(first, *others)
    rows = [row for row in read(model) if row.split == "train"]
    assert [row.step for row in rows] == [1, 2]
    assert await backend.step(model) == 2
    await closed(backend, model)


async def test_a_request_that_never_arrived_is_said_and_forgotten(
    serving, connect, make_model, caplog
):
    server = serving()
    backend, model = await ready(server, connect, make_model)
    Journal(model.run_dir).write(Pending.new(backend._models.of(model).record.id, 1))
    await closed(backend, model)
    backend, model = await ready(server, connect, make_model)
    assert await backend.step(model) == 0
    assert "has no job for it" in caplog.text
    await closed(backend, model)


async def test_a_clock_that_is_wrong_changes_nothing(serving, connect, make_model, monkeypatch):
    """Order comes from the jobs' numbers, times from clocks that can't be set."""
    server = serving()
    backend, model = await ready(server, connect, make_model)
    times = iter([2e9, -1.0, 0.0, 1e9, 5.0, -5.0] * 100)
    monkeypatch.setattr(time, "time", lambda: next(times))
    for step in (1, 2, 3):
        result = await model.train(await attempts(model, (0.0, 1.0)), **OPTIONS)
        assert result.step == step
        assert 0 <= result.metrics["time/step_trainer_s"] < 60
    await closed(backend, model)


async def test_jobs_of_one_model_run_in_order(serving, connect, make_model):
    server = serving()
    backend, model = await ready(server, connect, make_model)
    model_id = backend._models.of(model).record.id
    jobs = [await backend._api.submit(model_id, [], OPTIONS, key=str(n)) for n in range(4)]
    ended = []
    for job in jobs:
        events = []
        while not events or events[-1].type != "training_ended":
            events += await backend._api.events(job, events[-1].id if events else None)
        ended.append(events[-1].data["step"])
    assert ended == [1, 2, 3, 4]
    await closed(backend, model)


def test_a_job_is_kept_whole_and_a_second_start_forgets_what_the_first_told(tmp_path):
    store = Store(tmp_path)
    model = store.add_model(Address(entity="e", project="p", name="n"), "base")
    job = store.add_job(model.id, {"learning_rate": 1e-3}, b"[]", "key")
    assert store.add_job(model.id, {"learning_rate": 1e-3}, b"[]", "key") is None
    store.count_attempt(job.id)
    store.begin_training(job.id, 4)
    store.add_event(job.id, "training_started", {"num_sequences": 1})
    store.close()
    store = Store(tmp_path)
    (found,) = store.unfinished()
    assert found == attrs.evolve(job, state="running", step_before=4, attempts=1)
    store.count_attempt(job.id)
    store.begin_training(job.id, 4)
    assert store.events(job.id, 0, 10) == []
    store.end(job.id, "ended", [("training_ended", {"step": 5})])
    assert store.unfinished() == []
    assert not store.groups.of(job.id).exists()
    assert store.job_counts() == {"ended": 1}
    store.delete_model(model.id)
    assert store.job(job.id) is None
    assert store.models() == []
    store.close()


async def test_a_step_that_was_whole_before_the_server_died_is_not_run_again(
    serving, connect, make_model, tmp_path
):
    server = serving()
    backend, model = await ready(server, connect, make_model)
    model_id = backend._models.of(model).record.id
    await model.train(await attempts(model, (0.0, 1.0)), **OPTIONS)
    server.stop()
    store = Store(server.settings.directory)
    job = store.add_job(model_id, OPTIONS, b"[]", "cut off")
    for _ in range(MAX_ATTEMPTS):
        store.count_attempt(job.id)
    store.begin_training(job.id, 0)  # at last it had made step 1, and its news was lost
    store.close()
    again = serving(directory=server.settings.directory)
    await closed(backend, model)
    backend, model = await ready(again, connect, make_model)
    events = await backend._api.events(job.id, None)
    while events[-1].type != "training_ended":
        events += await backend._api.events(job.id, events[-1].id)
    assert events[-1].data == {"step": 1}
    assert await backend.step(model) == 1
    await closed(backend, model)


SERVE = [sys.executable, "-m", "art_core", "serve", "--backend", "test-slow", "--port", "0"]
PLUGIN = """
import asyncio, os
import art_core as art
from art_core.testing.echo import EchoBackend

class Slow(EchoBackend):
    async def train(self, model, groups, **options):
        await asyncio.sleep(float(os.environ.get("SLOW_S", 1)))
        return await super().train(model, groups, **options)

@art.hookimpl
def art_backends():
    return [art.BackendSpec(name="test-slow", create=Slow, summary="takes its time")]
"""


@pytest.fixture
def slow_server(tmp_path, monkeypatch):
    """Start `art serve` as a process of its own: gives it and its URL."""
    (tmp_path / "slow_plugin.py").write_text(PLUGIN)
    info = tmp_path / "slow_plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slow_plugin\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[art_core]\nslow = slow_plugin\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("ART_API_KEY", "a key of the tests")
    monkeypatch.setenv("ART_DIR", str(tmp_path / "runs"))
    processes = []

    def start(grace_s=0):
        process = subprocess.Popen(
            [*SERVE, "--grace-s", str(grace_s)], stdout=subprocess.PIPE, text=True, bufsize=1
        )
        processes.append(process)
        line = process.stdout.readline()
        return process, line.split()[3].rstrip(";")

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()


def healthy(url):
    root = url.removesuffix("/v1")
    for _ in range(300):
        try:
            last = httpx2.get(f"{root}/health").status_code
        except httpx2.HTTPError as error:
            last = error
        if last == 200:
            return
        time.sleep(0.05)
    raise AssertionError(f"{url} never answered: {last!r}")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_a_server_that_dies_in_mid_job_runs_it_after_its_restart(
    slow_server, connect, make_model, how
):
    process, url = slow_server()
    healthy(url)
    backend, model = await ready(url, connect, make_model)
    groups = await attempts(model, (0.0, 1.0))
    pending = Pending.new(backend._models.of(model).record.id, 1)
    Journal(model.run_dir).write(pending)
    await backend._api.submit(pending.model_id, groups, OPTIONS, key=pending.key)
    await asyncio.sleep(0.3)
    process.send_signal(how)
    assert process.wait(60) == (-signal.SIGKILL if how == signal.SIGKILL else 0)
    await closed(backend, model)
    process, url = slow_server()
    healthy(url)
    backend, model = await ready(url, connect, make_model)
    assert await backend.step(model) == 1
    assert read(model)[-1].step == 1
    await closed(backend, model)


async def test_a_second_signal_does_not_wait_for_the_step_under_way(
    slow_server, connect, make_model, monkeypatch
):
    monkeypatch.setenv("SLOW_S", "60")
    process, url = slow_server(grace_s=60)
    healthy(url)
    backend, model = await ready(url, connect, make_model)
    await backend._api.submit(backend._models.of(model).record.id, [], OPTIONS, key="k")
    await closed(backend, model)
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == -signal.SIGTERM


def test_a_second_server_in_one_directory_is_told(slow_server, tmp_path: Path):
    _, url = slow_server()
    healthy(url)
    done = subprocess.run(SERVE, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert "another `art serve`" in done.stderr


async def test_a_stop_waits_for_a_step_that_its_backend_does_not_leave_whatever_its_grace(
    serving, connect, make_model
):
    """As local, unsloth and tinker do; the news of the step comes with the next start."""

    class Whole(Slow):
        async def train(self, model, groups, **options):
            self.step_under_way = asyncio.ensure_future(super().train(model, groups, **options))
            return await asyncio.shield(self.step_under_way)

        async def close(self):
            await self.step_under_way
            await super().close()

    whole = Whole()
    server = serving(whole, grace_s=0.0)
    backend, model = await ready(server, connect, make_model)
    model_id = backend._models.of(model).record.id
    job_id = await backend._api.submit(model_id, [], OPTIONS, key="k")
    await backend._api.events(job_id, None)
    stopping = asyncio.create_task(asyncio.to_thread(server.stop))
    await asyncio.sleep(1.0)
    assert not stopping.done()
    server.set(whole.go)
    await stopping
    assert server.whole is False
    again = serving(directory=server.settings.directory)
    await closed(backend, model)
    backend, model = await ready(again, connect, make_model)
    while (last := (await backend._api.events(job_id, None))[-1]).type != "training_ended":
        pass
    assert last.data == {"step": 1}
    await closed(backend, model)


async def test_a_client_that_waits_for_news_is_answered_when_the_server_stops(
    serving, connect, make_model, caplog
):
    server = serving(Slow(), grace_s=0.0)
    backend, model = await ready(server, connect, make_model)
    model_id = backend._models.of(model).record.id
    job_id = await backend._api.submit(model_id, [], OPTIONS, key="k")
    begun = (await backend._api.events(job_id, None))[-1]
    waiting = asyncio.create_task(backend._api.events(job_id, begun.id))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    await asyncio.to_thread(server.stop)
    assert await waiting == []
    assert "Exception" not in caplog.text
    await closed(backend, model)


async def test_a_server_that_dies_while_a_client_waits_ends_the_step_with_a_reason(
    slow_server, connect, make_model
):
    process, url = slow_server()
    healthy(url)
    backend, model = await ready(url, connect, make_model)
    groups = await attempts(model, (0.0, 1.0))
    step = asyncio.create_task(model.train(groups, **OPTIONS))
    await until_async(lambda: (sent := Journal(model.run_dir).read()) and sent.job_id)
    process.kill()
    with pytest.raises(BackendError, match="cannot reach"):
        await step
    assert Journal(model.run_dir).read().job_id  # to be found again
    await closed(backend, model)
