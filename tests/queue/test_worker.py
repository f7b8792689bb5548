"""A worker makes attempts until the queue is finished, it is stopped, or it is cancelled."""

from __future__ import annotations

import asyncio
import time

import pytest

import art_core as art
from art_core.queue.worker import QueueWorker
from queued import attempt, scenarios
from waiting import until_async


async def test_a_worker_makes_every_attempt_and_ends_with_the_queue(queue):
    await queue.fill(scenarios(3), size=2, last=True)
    running, most, ended = 0, 0, []

    async def make(lease):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        if lease.attempt == 1 and lease.slot == 1:
            raise ValueError("no")
        return attempt(lease.scenario.index / 4)

    worker = QueueWorker(
        queue=queue,
        attempt=make,
        name="w",
        concurrent=2,
        ended=lambda lease, reply: ended.append((lease.scenario.index, reply)),
    )
    working = asyncio.create_task(worker.run())
    batch = await queue.take(3, 3, step=0)
    await queue.commit(batch.cursor)
    await working
    assert worker.replies == {"accepted": 6, "failed": 3}
    assert sorted(group.rewards for group in batch.groups) == [[0, 0], [0.25, 0.25], [0.5, 0.5]]
    assert len(ended) == 9
    assert most == 2


async def test_a_worker_that_is_stopped_ends_what_runs_and_leases_no_more(queue):
    await queue.fill(scenarios(4), size=1)
    gates = [asyncio.Event(), asyncio.Event()]

    async def make(lease):
        await gates[lease.scenario.index].wait()
        return attempt()

    worker = QueueWorker(queue=queue, attempt=make, name="w", concurrent=2)
    working = asyncio.create_task(worker.run())
    await until_async(lambda: len(worker._running) == 2)
    worker.stop()
    for done, gate in enumerate(gates, start=1):
        gate.set()
        await until_async(lambda done=done: worker.replies["accepted"] == done)
    await working
    counts = await queue.counts()
    assert (counts.leased, counts.waiting, counts.ready) == (0, 2, 2)


async def test_a_worker_that_is_cancelled_gives_its_leases_back(queue):
    await queue.fill(scenarios(2), size=1)

    async def make(_):
        await asyncio.Event().wait()

    worker = QueueWorker(queue=queue, attempt=make, name="w", concurrent=2)
    working = asyncio.create_task(worker.run())
    await until_async(lambda: len(worker._running) == 2)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    counts = await queue.counts()
    assert (counts.leased, counts.waiting) == (0, 2)


async def test_leases_are_renewed_while_attempts_run(opened):
    queue = opened(clock=time.monotonic, lease_s=0.3)
    await queue.fill(scenarios(1), size=1)
    go_on = asyncio.Event()

    async def make(_):
        await go_on.wait()
        return attempt()

    worker = QueueWorker(queue=queue, attempt=make, name="w")
    working = asyncio.create_task(worker.run())

    def renewals():
        return queue._db.read(
            lambda db: db.execute("select coalesce(max(renewed), 0) from attempts").fetchone()[0]
        )

    await until_async(lambda: renewals() >= 2)
    worker.stop()
    go_on.set()
    await working
    assert worker.replies == {"accepted": 1}


async def test_the_attempt_of_a_lease_that_is_over_is_cancelled(opened):
    queue = opened(lease_s=0.03)
    await queue.fill(scenarios(1), size=1)
    cancelled = []

    async def make(lease):
        await queue.give_back(lease.key)
        worker.stop()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(lease.key)

    worker = QueueWorker(queue=queue, attempt=make, name="w")
    await worker.run()
    assert worker.replies == {"lost": 1}
    assert len(cancelled) == 1


async def test_an_error_of_the_queue_ends_the_worker(queue):
    await queue.fill(scenarios(1), size=1)

    async def make(lease):
        await queue.aclose()
        return attempt()

    with pytest.raises(art.HistoryError, match="is closed"):
        await QueueWorker(queue=queue, attempt=make, name="w").run()
