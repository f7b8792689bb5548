"""What attempts paid elsewhere is in the log once, whatever became of them."""

from __future__ import annotations

import asyncio
import json
from itertools import count

import pytest

import art_core as art
from art_core.base.errors import ConfigError
from art_core.data.account import charging, open_account
from art_core.log.rows import paid_at
from art_core.queue.paid import Paid, paid_from, paid_of
from art_core.queue.queue import AttemptQueue
from art_core.queue.worker import QueueWorker
from art_core.testing.echo import EchoBackend
from queued import FAILURE, attempt, run_all, scenarios
from waiting import until_async

USAGE = {"usage": {"prompt_tokens": 1000, "completion_tokens": 0}}


@art.track_api_cost(
    source="judge",
    provider="openai",
    model_name="gpt-4.1",
    prompt_per_million=1000.0,
    completion_per_million=0.0,
)
def judged(answer=USAGE):
    """Pay one dollar for a thousand tokens."""
    return answer


async def dollars(n=1):
    """Return the receipts of calls for `n` dollars, as a worker sends them."""
    worker_calls = []

    async def rollout():
        for _ in range(n):
            judged()
        return attempt()

    (group,) = await art.gather_trajectory_groups(
        [art.TrajectoryGroup([rollout()])], pbar_desc=None
    )
    for account in group.accounts():
        worker_calls += account.take()
    return paid_from(json.loads(json.dumps([each.to_dict() for each in paid_of(worker_calls)])))


def test_a_call_of_another_kind_stays_one_without_a_price():
    call = Paid(source="judge", receipt=None)
    assert paid_of([call, call]) == (call, call)


@pytest.fixture(autouse=True)
def _alone(no_open_models: None) -> None:
    pass


@pytest.fixture
async def backend():
    made = EchoBackend()
    yield made
    await made.close()


@pytest.fixture
async def make_model(tmp_path, backend):
    """Open the same run, as often as a test does."""
    made = []

    def make():
        made.append(
            art.TrainableModel(
                name="m", project="p", base_model="echo", base_path=tmp_path, sinks=[]
            )
        )
        return made[-1]

    yield make
    for model in made:
        await model.close()


def paid_rows(model):
    rows = art.open_run(model.run_dir).rows()
    return [(row.step, row.metrics.get("costs/train/judge", 0.0)) for row in rows]


async def submitted(queue, n, paid=()):
    for lease in await queue.lease("w", n):
        await queue.submit(lease.key, attempt(), paid=paid)


async def trained(model, queue, oldest=4):
    step = await model.get_step()
    batch = await queue.take(1, 1, step=step, max_steps_off_policy=oldest)
    await model.train(batch.groups, cursor=batch.cursor)
    await queue.commit(batch.cursor)
    return batch


async def test_the_row_that_trains_an_attempt_has_what_it_paid(make_model, backend):
    model = make_model()
    await model.register(backend)
    async with AttemptQueue.open(model.run_dir, step=0) as queue:
        await queue.fill(scenarios(2), size=2)
        await submitted(queue, 2)
        (one, two) = await queue.lease("w", 2)
        assert await queue.submit(one.key, attempt(), paid=await dollars(3)) == "accepted"
        assert await queue.submit(one.key, attempt(), paid=await dollars(3)) == "duplicate"
        await trained(model, queue)
        assert await queue.submit(two.key, attempt()) == "accepted"
        await trained(model, queue)
    assert paid_rows(model) == [(1, 0), (2, 3)]
    receipts = list(art.open_run(model.run_dir).rows())[1].receipts
    (receipt,) = (each for each in receipts if each["leaf"] == "costs/train/judge")
    assert [receipt[name] for name in ("calls", "input_tokens", "usd")] == [3, 3000, 3]
    assert receipt["rates"]["input_per_million"] == 1000


async def test_attempts_that_failed_or_were_late_stale_given_back_or_set_aside_are_paid_once(
    make_model, backend
):
    model = make_model()
    await model.register(backend)
    one = await dollars(1)
    async with AttemptQueue.open(model.run_dir, step=0, tries=1) as queue:
        await queue.fill(scenarios(4), size=1)
        aside, back, stale, new = await queue.lease("w", 4)
        await queue.submit(aside.key, FAILURE, paid=one)
        await queue.give_back(back.key, paid=one)
        await submitted(queue, 1)
        assert [await queue.submit(back.key, attempt(), paid=one) for _ in range(2)] == 2 * ["late"]
        await trained(model, queue)
        await queue.submit(stale.key, attempt(), step=0, paid=one)
        await queue.submit(new.key, attempt(), step=1, paid=one)
        assert (await trained(model, queue, oldest=0)).stale == 1
    assert paid_rows(model) == [(1, 2), (2, 2)]


@pytest.mark.parametrize("cut", ["before the row", "after the row"])
async def test_a_kill_between_a_step_and_its_commit_books_nothing_twice(make_model, backend, cut):
    model = make_model()
    await model.register(backend)
    queue = AttemptQueue.open(model.run_dir, step=0)
    await queue.fill(scenarios(2), size=1)
    await submitted(queue, 2, paid=await dollars(2))
    batch = await queue.take(1, 1, step=0)
    assert [each.quote() for each in batch.paid] == [2]
    if cut == "after the row":
        await model.train(batch.groups, cursor=batch.cursor)
    else:
        for account in batch.groups[0].accounts():
            account.take()  # as the end of the process does
    queue.close()
    await model.close()

    model = make_model()
    await model.register(backend)
    async with AttemptQueue.open(model.run_dir, step=await model.get_step()) as queue:
        while await model.get_step() < 2:
            await trained(model, queue)
    assert paid_rows(model) == [(1, 2), (2, 2)]


async def test_a_step_that_failed_is_taken_again_and_its_calls_are_booked_once(make_model, backend):
    model = make_model()
    await model.register(backend)
    async with AttemptQueue.open(model.run_dir, step=0) as queue:
        await queue.fill(scenarios(1), size=1)
        await submitted(queue, 1, paid=await dollars(1))
        failed = await queue.take(1, 1, step=0)
        with pytest.raises(ConfigError):
            await model.train(failed.groups, cursor=failed.cursor, no_such_option=1)
        await queue.rewind()
        await trained(model, queue)
        del failed
    await model.log(metrics={"note": 1})
    assert [usd for _, usd in paid_rows(model)] == [1, 0]


async def test_a_queue_that_begins_again_books_later_calls(make_model, backend, tmp_path):
    model = make_model()
    await model.register(backend)
    for step in range(2):
        async with AttemptQueue.open(model.run_dir, step=step) as queue:
            await queue.fill(scenarios(1), size=1)
            await submitted(queue, 1, paid=await dollars(1))
            await trained(model, queue)
        for file in (model.run_dir / "queue").iterdir():
            file.unlink()
    assert paid_rows(model) == [(1, 1), (2, 1)]


async def test_what_no_step_trained_is_booked_at_the_end_and_only_there(make_model, backend):
    model = make_model()
    await model.register(backend)
    async with AttemptQueue.open(model.run_dir, step=0, tries=1) as queue:
        await queue.fill(scenarios(2), size=1, last=True)
        one, two = await queue.lease("w", 2)
        await queue.submit(one.key, FAILURE, paid=await dollars(1))
        await queue.submit(two.key, attempt(), paid=await dollars(2))
        await queue.settle(model.metrics_builder("train"))
        await trained(model, queue)
        assert (await queue.take(1, 1, step=1)).groups == ()
        await queue.settle(model.metrics_builder("train"))
    await model.close()
    assert paid_rows(model) == [(1, 3)]


def test_the_newest_number_of_a_log_is_that_of_its_last_whole_row(tmp_path):
    row = {"step": 1, "recorded_at": "2026-01-01T00:00:00+00:00"}
    lines = [{**row, "_paid": 2}, {**row, "_paid": 3}, row, {"_paid": 4}]
    file = tmp_path / "history.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert paid_at(file) == 3


def test_a_call_whose_usage_could_not_be_read_has_no_receipt():
    class Unread:
        @property
        def usage(self):
            raise ValueError("no")

    account = open_account()
    with charging(account):
        judged(Unread())
    (paid,) = paid_of(account.take())
    assert (paid.receipt, paid.quote()) == (None, None)


async def test_a_call_whose_usage_is_not_known_is_counted(make_model, backend):
    model = make_model()
    await model.register(backend)
    async with AttemptQueue.open(model.run_dir, step=0) as queue:
        await queue.fill(scenarios(1), size=1)
        await submitted(queue, 1, paid=[Paid(source="judge", receipt=None)])
        await trained(model, queue)
    (row,) = art.open_run(model.run_dir).rows()
    assert row.metrics["data/step_unpriced_calls"] == 1


async def test_a_worker_sends_what_each_attempt_paid_whatever_its_end(queue):
    await queue.fill(scenarios(4), size=1)
    ends, waiting = count(), asyncio.Event()

    async def make(lease):
        judged()
        end = next(ends)
        if end == 0:
            raise ValueError("no")
        if end == 1:
            await queue.give_back(lease.key)
        if end > 1:
            waiting.set()
            await asyncio.Event().wait()
        return attempt()

    worker = QueueWorker(queue=queue, attempt=make, name="w", concurrent=1)
    working = asyncio.create_task(worker.run())
    await until_async(waiting.is_set)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert sum(worker.replies.values()) == 2
    await run_all(queue)
    batch = await queue.take(4, 4, step=0)
    assert sum(each.quote() for each in batch.paid) == 3


@pytest.mark.parametrize(
    "stored", ["judge", 3, [{"source": "judge"}], [{"source": "a//b", "receipt": None}], [[]],
               [{"source": "judge", "receipt": {"item": "m", "usd": -1}}]]
)  # fmt: skip
def test_values_that_are_no_paid_calls_are_refused(stored):
    with pytest.raises(ConfigError, match="paid call"):
        paid_from(stored)
