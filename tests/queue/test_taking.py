"""The trainer takes whole groups at a cursor, which the step's row keeps."""

from __future__ import annotations

import asyncio
import time

import pytest

import art_core as art
from art_core.log.rows import cursor_at
from art_core.testing.echo import EchoBackend
from queued import FAILURE, attempt, run_all, scenarios


async def test_groups_are_taken_whole_and_in_the_order_in_which_they_became_whole(queue):
    await queue.fill(scenarios(3), size=2)
    leased = await queue.lease("a", 6)
    for at in (2, 3, 4, 0, 1):
        await queue.submit(leased.leases[at].key, attempt(at / 8))
    batch = await queue.take(1, 9, step=0)
    assert [group.rewards for group in batch.groups] == [[0.25, 0.375], [0.0, 0.125]]
    assert batch.groups[0].metadata == {
        "scenario_id": "1",
        "epoch": 0,
        "index": 1,
        "queue_group": 2,
    }
    assert (batch.cursor, batch.finished, batch.stale, batch.dropped) == (2, False, 0, 0)


async def test_consecutive_takes_give_consecutive_groups(queue):
    await queue.fill(scenarios(3), size=1, last=True)
    await run_all(queue)
    first, second = await queue.take(1, 1, step=0), await queue.take(1, 1, step=0)
    assert [b.groups[0].metadata["index"] for b in (first, second)] == [0, 1]
    assert [b.cursor for b in (first, second)] == [1, 2]
    await queue.commit(first.cursor)
    await queue.rewind()
    rest = await queue.take(2, 2, step=0)
    assert [group.metadata["index"] for group in rest.groups] == [1, 2]
    assert rest.finished
    await queue.commit(rest.cursor)
    end = await queue.take(1, 1, step=1)
    assert (end.groups, end.finished, end.cursor) == ((), True, 3)


async def test_a_take_waits_for_enough_groups_and_not_longer_than_asked(opened):
    queue = opened(clock=time.monotonic)
    await queue.fill(scenarios(2), size=1)
    one, two = await queue.lease("a", 2)
    await queue.submit(one.key, attempt())
    nothing = await queue.take(2, 2, step=0, wait_s=0.01)
    assert (nothing.groups, nothing.cursor) == ((), 0)
    taking = asyncio.create_task(queue.take(2, 2, step=0))
    await asyncio.sleep(0.01)
    await queue.submit(two.key, attempt())
    assert len((await taking).groups) == 2


async def test_a_take_that_is_cancelled_has_taken_nothing(queue):
    await queue.fill(scenarios(2), size=1)
    one, _ = await queue.lease("a", 2)
    await queue.submit(one.key, attempt())
    taking = asyncio.create_task(queue.take(2, 2, step=0))
    await asyncio.sleep(0.02)
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert len((await queue.take(1, 2, step=0)).groups) == 1


async def test_the_age_of_a_group_is_that_of_its_oldest_attempt(queue):
    await queue.fill(scenarios(2), size=2)
    leased = await queue.lease("a", 4)
    for lease, step in zip(leased, (7, 5, 6, 6), strict=True):
        await queue.submit(lease.key, attempt(step=step))
    batch = await queue.take(2, 2, step=8, max_steps_off_policy=3)
    assert batch.off_policy == (3, 2)
    assert queue.step == 8


async def test_an_attempt_without_tokens_is_as_old_as_its_lease(queue):
    await queue.fill(scenarios(2), size=1)
    await queue.take(1, 1, step=4, wait_s=0)
    (lease, other) = await queue.lease("a", 2)
    assert lease.step == 4
    await queue.submit(lease.key, attempt())
    await queue.submit(other.key, attempt(), step=3)
    batch = await queue.take(2, 2, step=6)
    assert batch.off_policy == (2, 3)


async def test_stale_groups_are_put_back_at_the_front_and_made_again(queue):
    await queue.fill(scenarios(3), size=1, last=True)
    leased = await queue.lease("a", 2)
    await queue.submit(leased.leases[0].key, attempt(0.1), step=0)
    await queue.submit(leased.leases[1].key, attempt(0.2), step=3)
    batch = await queue.take(1, 3, step=4, max_steps_off_policy=2)
    assert ([g.rewards for g in batch.groups], batch.stale) == ([[0.2]], 1)
    assert await queue.submit(leased.leases[0].key, attempt()) == "duplicate"
    (again,) = await queue.lease("a")
    assert (again.scenario.index, again.attempt) == (0, 2)
    await queue.submit(again.key, attempt(0.3), step=4)
    rest = await queue.take(1, 3, step=5, max_steps_off_policy=2)
    assert ([g.rewards for g in rest.groups], rest.stale) == ([[0.3]], 0)
    assert (await queue.counts()).stale == 1


async def test_a_lease_of_before_its_scenario_was_put_back_is_late(queue, clock):
    await queue.fill(scenarios(1), size=1)
    (slow,) = await queue.lease("slow")
    clock.now += 301
    (other,) = await queue.lease("b")
    await queue.submit(other.key, attempt(), step=0)
    waiting = await queue.take(1, 1, step=9, max_steps_off_policy=2, wait_s=0)
    assert (waiting.groups, waiting.stale) == ((), 1)
    (again,) = await queue.lease("c")
    assert await queue.submit(slow.key, attempt()) == "late"
    assert await queue.submit(again.key, attempt()) == "accepted"


async def test_stale_groups_can_be_dropped(queue):
    await queue.fill(scenarios(2), size=1, last=True)
    one, two = await queue.lease("a", 2)
    await queue.submit(one.key, attempt(0.1), step=0)
    await queue.submit(two.key, attempt(0.2), step=3)
    batch = await queue.take(2, 2, step=4, max_steps_off_policy=2, stale="drop")
    assert ([g.rewards for g in batch.groups], batch.stale, batch.dropped) == ([[0.2]], 1, 0)
    assert batch.finished
    await queue.commit(batch.cursor)
    counts = await queue.counts()
    assert (counts.trained, counts.dropped, counts.stale) == (1, 1, 1)


async def test_groups_that_are_not_wanted_are_dropped_and_make_room_for_others(opened):
    queue = opened(max_groups_ahead=2)
    await queue.fill(scenarios(3), size=2, last=True)
    leased = await queue.lease("a", 6)
    assert len(leased) == 4
    for lease, reward in zip(leased, (1, 1, 0, 1), strict=True):
        await queue.submit(lease.key, attempt(reward))

    def varied(group):
        return len(set(group.rewards)) > 1

    nothing = await queue.take(2, 2, step=0, keep=varied, wait_s=0)
    assert (nothing.groups, nothing.dropped) == ((), 1)
    for lease, reward in zip(await queue.lease("a", 6), (0, 1), strict=True):
        await queue.submit(lease.key, attempt(reward))
    batch = await queue.take(2, 2, step=0, keep=varied)
    assert ([g.metadata["index"] for g in batch.groups], batch.dropped) == ([1, 2], 0)
    await queue.commit(batch.cursor)
    counts = await queue.counts()
    assert (counts.trained, counts.dropped, counts.ready) == (2, 1, 0)


async def test_an_attempt_of_several_players_gives_a_group_for_each(queue):
    await queue.fill(scenarios(1), size=2)
    for lease in await queue.lease("a", 2):
        await queue.submit(lease.key, {"black": attempt(0.0), "white": attempt(1.0)})
    batch = await queue.take(1, 1, step=0)
    assert [(g.metadata["player"], g.rewards) for g in batch.groups] == [
        ("black", [0.0, 0.0]),
        ("white", [1.0, 1.0]),
    ]
    assert batch.off_policy == (0,)


async def test_counts_state_where_each_attempt_is(queue):
    await queue.fill(scenarios(3), size=2)
    leased = await queue.lease("a", 4)
    for lease in leased.leases[:3]:
        await queue.submit(lease.key, attempt())
    counts = await queue.counts()
    assert (counts.waiting, counts.leased, counts.done, counts.ready) == (2, 1, 1, 1)


async def test_limits_that_contradict_each_other_are_refused(queue):
    with pytest.raises(art.ConfigError, match=r"maximum must be at least minimum \(2\), got 1"):
        await queue.take(2, 1, step=0)


@pytest.fixture
async def model(tmp_path):
    backend = EchoBackend()
    made = art.TrainableModel(name="m", project="p", base_model="b", base_path=tmp_path, sinks=[])
    await made.register(backend)
    yield made
    await made.close()
    await backend.close()


async def test_a_kill_after_the_row_trains_no_group_twice(opened, model):
    queue = opened(model.run_dir)
    await queue.fill(scenarios(3), size=1, last=True)
    await run_all(queue)
    batch = await queue.take(2, 2, step=0)
    await model.train(batch.groups, cursor=batch.cursor)
    await queue.aclose()  # killed before the commit
    assert cursor_at(model.run_dir / "history.jsonl", 1) == 2
    queue = opened(model.run_dir, step=1)
    assert (await queue.counts()).trained == 2
    rest = await queue.take(1, 3, step=1)
    assert [g.metadata["index"] for g in rest.groups] == [2]


async def test_a_kill_before_the_row_loses_no_group(opened, model):
    queue = opened(model.run_dir)
    await queue.fill(scenarios(2), size=1)
    await run_all(queue)
    await queue.take(2, 2, step=0)
    await queue.aclose()
    queue = opened(model.run_dir)
    assert len((await queue.take(2, 2, step=0)).groups) == 2


async def test_groups_that_an_older_checkpoint_has_not_seen_are_put_back(opened, model):
    queue = opened(model.run_dir)
    await queue.fill(scenarios(3), size=1, last=True)
    await run_all(queue)
    for step in (0, 1, 2):
        batch = await queue.take(1, 1, step=step)
        await model.train(batch.groups, cursor=batch.cursor)
        await queue.commit(batch.cursor)
    assert (await queue.lease("a")).finished
    await queue.aclose()
    queue = opened(model.run_dir, step=1)
    assert [lease.scenario.index for lease in await queue.lease("a", 9)] == [1, 2]
    assert cursor_at(model.run_dir / "history.jsonl", 0) == 0


async def test_a_group_with_failures_keeps_them_through_the_disk(queue):
    await queue.fill(scenarios(1), size=1)
    (lease,) = await queue.lease("a")
    await queue.submit(lease.key, {"white": attempt(1.0), "black": FAILURE})
    groups = (await queue.take(1, 1, step=0)).groups
    assert [(g.metadata["player"], g.rewards, g.failures) for g in groups] == [
        ("white", [1.0], ()),
        ("black", [], (FAILURE,)),
    ]
