"""Workers lease slots and submit attempts: each slot takes one, whatever happens to workers."""

from __future__ import annotations

import asyncio
import time

import attrs
import pytest

import art_core as art
from art_core.queue.queue import POLL_S
from art_core.queue.slots import MAX_EXPIRED
from queued import FAILURE, attempt, run_all, scenarios


async def test_each_slot_of_each_scenario_is_leased_once_in_order(queue):
    assert await queue.fill(scenarios(2), size=2) == 2
    first = await queue.lease("a", 3)
    rest = await queue.lease("b", 3)
    places = [(lease.scenario.index, lease.slot) for lease in (*first, *rest)]
    assert places == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len({lease.key for lease in (*first, *rest)}) == 4
    assert (first.leases[0].scenario.value, first.leases[0].scenario.id) == ({"question": 0}, "0")
    assert (len(first), first.leases[0].seconds, first.leases[0].attempt) == (3, 300, 1)
    nothing = await queue.lease("c")
    assert (nothing.leases, nothing.finished) == ((), False)


async def test_after_the_last_step_workers_get_nothing_and_end(queue):
    await queue.fill(scenarios(1), size=2)
    (lease,) = await queue.lease("a")
    queue.end_leasing()
    nothing = await queue.lease("b", wait_s=60)
    assert (nothing.leases, nothing.finished) == ((), True)
    assert await queue.submit(lease.key, attempt(1.0)) == "accepted"


async def test_an_attempt_that_is_sent_twice_is_stored_once(queue):
    await queue.fill(scenarios(1), size=1)
    (lease,) = await queue.lease("a")
    assert await queue.submit(lease.key, attempt(1.0)) == "accepted"
    assert await queue.submit(lease.key, attempt(0.0)) == "duplicate"
    batch = await queue.take(1, 1, step=0)
    assert [group.rewards for group in batch.groups] == [[1.0]]
    await queue.commit(batch.cursor)
    assert await queue.submit(lease.key, attempt(0.0)) == "duplicate"


async def test_the_lease_of_a_worker_that_was_killed_expires_and_goes_to_another(queue, clock):
    await queue.fill(scenarios(1), size=1)
    (dead,) = await queue.lease("killed")
    clock.now += 299
    assert len(await queue.lease("b")) == 0
    clock.now += 2
    (again,) = await queue.lease("b")
    assert (again.group, again.slot, again.attempt) == (dead.group, dead.slot, 2)
    assert await queue.renew(dead.key) is False
    assert (await queue.counts()).expired == 1


async def test_an_attempt_after_its_lease_expired_takes_its_slot_if_no_other_has(queue, clock):
    await queue.fill(scenarios(1), size=2)
    slow, gone = await queue.lease("slow", 2)
    clock.now += 301
    one, two = await queue.lease("b", 2)
    assert await queue.submit(slow.key, attempt(0.25)) == "accepted"
    assert await queue.renew(one.key) is False
    assert await queue.submit(one.key, attempt(0.5)) == "late"
    assert await queue.submit(one.key, attempt(0.5)) == "late"
    assert await queue.submit(two.key, attempt(0.75)) == "accepted"
    assert await queue.submit(gone.key, attempt()) == "late"
    batch = await queue.take(1, 1, step=0)
    assert batch.groups[0].rewards == [0.25, 0.75]


async def test_a_lease_that_is_renewed_does_not_expire(queue, clock):
    await queue.fill(scenarios(1), size=1)
    (lease,) = await queue.lease("a")
    for _ in range(5):
        clock.now += 200
        assert await queue.renew(lease.key)
        assert len(await queue.lease("b")) == 0
    assert await queue.submit(lease.key, attempt()) == "accepted"


async def test_a_lease_that_is_given_back_goes_to_another_worker_at_once(queue):
    await queue.fill(scenarios(1), size=1)
    (lease,) = await queue.lease("a")
    assert await queue.give_back(lease.key)
    assert await queue.give_back(lease.key) is False
    (again,) = await queue.lease("b")
    assert (again.slot, again.attempt) == (lease.slot, 2)


async def test_a_server_that_restarts_gives_open_leases_a_whole_new_term(opened, clock):
    queue = opened()
    await queue.fill(scenarios(1), size=1)
    (lease,) = await queue.lease("a")
    clock.now += 299
    await queue.aclose()
    queue = opened()
    assert len(await queue.lease("b")) == 0
    clock.now += 299
    assert len(await queue.lease("b")) == 0
    assert await queue.submit(lease.key, attempt()) == "accepted"


@pytest.mark.parametrize("now", [-7200.0, 1e9])
async def test_clocks_that_are_hours_apart_change_nothing(opened, clock, now):
    queue = opened()
    await queue.fill(scenarios(1), size=1)
    (lease,) = await queue.lease("a")
    await queue.aclose()
    clock.now += now  # the server's machine, or its clock, is another one now
    queue = opened()
    assert len(await queue.lease("b")) == 0
    assert await queue.renew(lease.key)
    assert await queue.submit(lease.key, attempt()) == "accepted"


async def test_two_processes_see_each_others_leases_and_renewals(opened, clock):
    trainer, server = opened(), opened(step=None)
    await trainer.fill(scenarios(1), size=1)
    (lease,) = await server.lease("a")
    for _ in range(4):
        clock.now += 200
        assert len(await trainer.lease("b")) == 0
        assert await server.renew(lease.key)
    clock.now += 200
    assert len(await trainer.lease("b")) == 0  # it sees the last renewal now
    clock.now += 301
    assert len(await trainer.lease("b")) == 1


async def test_a_failed_attempt_is_made_again_until_it_has_failed_n_times(queue):
    await queue.fill(scenarios(1), size=2)
    for attempts in (1, 2, 3):
        leased = await queue.lease("a")
        assert leased.leases[0].attempt == attempts
        assert await queue.submit(leased.leases[0].key, FAILURE) == "accepted"
        assert await queue.submit(leased.leases[0].key, FAILURE) == "duplicate"
        await queue.give_back((await queue.lease("b")).leases[0].key) if attempts == 3 else None
    (other,) = await queue.lease("a")
    assert other.slot == 1
    assert await queue.submit(other.key, attempt()) == "accepted"
    batch = await queue.take(1, 1, step=0)
    assert (batch.groups[0].rewards, batch.groups[0].failures) == ([1.0], (FAILURE,))


async def test_a_scenario_that_always_fails_is_set_aside_and_reported(opened):
    queue = opened(tries=2)
    await queue.fill(scenarios(2), size=1, last=True)
    for _ in range(2):
        (bad,) = await queue.lease("a")
        await queue.submit(bad.key, FAILURE)
    await run_all(queue)
    batch = await queue.take(2, 2, step=0)
    assert ([g.metadata["index"] for g in batch.groups], batch.finished) == ([1], True)
    (aside,) = await queue.set_aside()
    assert (aside.scenario.index, aside.failures) == (0, (FAILURE,))
    assert (await queue.counts()).set_aside == 1
    await queue.commit(batch.cursor)
    assert (await queue.lease("a")).finished


async def test_a_scenario_that_kills_its_workers_is_set_aside(opened, clock):
    queue = opened(lease_s=10)
    await queue.fill(scenarios(1), size=1, last=True)
    for _ in range(MAX_EXPIRED):
        assert len(await queue.lease("killed")) == 1
        clock.now += 11
    assert (await queue.lease("a")).finished
    (aside,) = await queue.set_aside()
    assert aside.failures[0].reason == "timeout"
    assert str(aside.failures[0]).endswith("20 workers did not end the attempt within 10 s")


async def test_the_failure_of_an_expired_lease_leaves_the_next_one_its_slot(queue, clock):
    await queue.fill(scenarios(1), size=1)
    (slow,) = await queue.lease("slow")
    clock.now += 301
    (again,) = await queue.lease("b")
    assert await queue.submit(slow.key, FAILURE) == "accepted"
    assert len(await queue.lease("c")) == 0
    assert await queue.submit(again.key, attempt()) == "accepted"


async def test_a_worker_with_another_version_of_the_rollout_is_refused(opened):
    queue = opened(version="v1")
    await queue.fill(scenarios(1), size=2)
    with pytest.raises(art.ConfigError, match=r"version v2 of the rollout, and the run has v1"):
        await queue.lease("a", version="v2")
    assert len(await queue.lease("a", version="v1")) == 1
    assert len(await queue.lease("a")) == 1  # one that states no version


async def test_the_first_worker_gives_the_version_if_the_trainer_has_none(opened):
    queue = opened()
    await queue.fill(scenarios(1), size=2)
    await queue.lease("a", version="v2")
    with pytest.raises(art.ConfigError, match="version v3"):
        await queue.lease("b", version="v3")
    opened(version="v3")
    assert len(await queue.lease("b", version="v3")) == 1


async def test_a_trajectory_that_no_group_can_hold_is_a_failure(queue):
    await queue.fill(scenarios(1), size=1)
    (lease,) = await queue.lease("a")
    await queue.submit(lease.key, attempt(float("nan")))
    assert (await queue.counts()).waiting == 1


async def test_an_unknown_key_is_refused(queue):
    with pytest.raises(art.ConfigError, match="no lease has the key '1-0-guessed'"):
        await queue.submit("1-0-guessed", attempt())
    assert await queue.renew("1-0-guessed") is False


async def test_only_as_many_groups_are_begun_as_allowed(opened):
    queue = opened(max_groups_ahead=2)
    await queue.fill(scenarios(4), size=2)
    leased = await queue.lease("a", 8)
    assert [lease.group for lease in leased] == [1, 1, 2, 2]
    await queue.submit(leased.leases[0].key, FAILURE)
    (again,) = await queue.lease("a", 8)  # a slot of a group that is begun
    assert (again.group, again.slot) == (1, 0)
    for lease in (again, *leased.leases[1:]):
        await queue.submit(lease.key, attempt())
    assert len(await queue.lease("a")) == 0
    batch = await queue.take(1, 1, step=0)
    assert len(await queue.lease("a")) == 0
    await queue.commit(batch.cursor)
    assert [lease.group for lease in await queue.lease("a", 8)] == [3, 3]


async def test_a_worker_that_waits_gets_a_slot_as_soon_as_there_is_one(queue, clock):
    waiting = asyncio.create_task(queue.lease("a", wait_s=60))
    await asyncio.sleep(0)
    await queue.fill(scenarios(1), size=1)
    (lease,) = await waiting
    later = asyncio.create_task(queue.lease("b", wait_s=60))
    await asyncio.sleep(0)
    await queue.give_back(lease.key)
    assert len(await later) == 1


async def test_a_worker_does_not_wait_longer_than_it_asked(opened):
    queue = opened(clock=time.monotonic)
    assert POLL_S > 0.01
    assert len(await queue.lease("a", wait_s=0.01)) == 0


async def test_scenarios_are_added_once_and_cannot_change(queue):
    assert await queue.fill(scenarios(2), size=2) == 2
    assert await queue.fill(scenarios(3), size=2) == 1
    assert await queue.fill(scenarios(1, epoch=1), size=2) == 1
    changed = [attrs.evolve(scenarios(1)[0], value={"question": "other"})]
    with pytest.raises(art.ConfigError, match="another scenario 0 of epoch 0"):
        await queue.fill(changed, size=2)
    assert (await queue.counts()).filled == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lease_s": -1}, "lease_s can't be negative"),
        ({"tries": 0}, "tries must be at least 1"),
        ({"max_groups_ahead": 0}, "max_groups_ahead must be at least 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(opened, options, message):
    with pytest.raises(art.ConfigError, match=message):
        opened(**options)
