"""Gathering with ART's rules."""

from __future__ import annotations

import asyncio

import pytest

import art


async def good(reward: float = 1.0) -> art.Trajectory:
    return art.Trajectory(reward=reward)


async def bad() -> art.Trajectory:
    raise KeyError("lost")


async def test_groups_of_generators_are_gathered():
    groups = await art.gather_trajectory_groups(
        (art.TrajectoryGroup((good(n) for n in range(2)), metadata={"n": 1}) for _ in range(2)),
        pbar_desc=None,
        pbar_total_completion_tokens=False,
        max_metrics=3,
    )
    assert [group.rewards for group in groups] == [[0.0, 1.0], [0.0, 1.0]]
    assert all(isinstance(group, art.TrajectoryGroup) for group in groups)
    assert groups[0].metadata == {"n": 1}


async def test_the_first_exception_is_raised_as_it_is():
    with pytest.raises(KeyError, match="lost"):
        await art.gather_trajectory_groups([art.TrajectoryGroup([good(), bad()])], pbar_desc=None)


@pytest.mark.parametrize("max_exceptions", [1, 0.5, 10])
async def test_exceptions_within_the_limit_stay_in_their_group(max_exceptions):
    (group,) = await art.gather_trajectory_groups(
        [art.TrajectoryGroup([good(), bad()])], pbar_desc=None, max_exceptions=max_exceptions
    )
    assert group.rewards == [1.0]
    assert [e.type for e in group.exceptions] == ["KeyError"]


async def test_a_gathering_in_which_all_may_fail_returns_empty_groups():
    (group,) = await art.gather_trajectory_groups(
        [art.TrajectoryGroup([bad(), bad()])], pbar_desc=None, max_exceptions=2
    )
    assert group.trajectories == []
    assert len(group.exceptions) == 2


async def test_coroutines_of_groups_are_gathered_and_their_exceptions_raised():
    async def made() -> art.TrajectoryGroup:
        return art.TrajectoryGroup([await good()])

    async def broken() -> art.TrajectoryGroup:
        raise OSError("no disk")

    (group,) = await art.gather_trajectory_groups([made()], pbar_desc=None)
    assert group.rewards == [1.0]
    with pytest.raises(OSError, match="no disk"):
        await art.gather_trajectory_groups([broken()], pbar_desc=None)


async def test_after_each_returns_a_group_several_or_none():
    async def split(group: art.TrajectoryGroup) -> object:
        assert isinstance(group, art.TrajectoryGroup)
        if len(group) == 1:
            return None
        return [art.TrajectoryGroup([trajectory]) for trajectory in group]

    groups = await art.gather_trajectory_groups(
        [art.TrajectoryGroup([good(1), good(2)]), art.TrajectoryGroup([good()])],
        pbar_desc=None,
        after_each=split,
    )
    assert [group.rewards for group in groups] == [[1.0], [2.0]]


async def test_an_exception_of_after_each_is_raised_as_it_is():
    async def judge(group: art.TrajectoryGroup) -> None:
        raise LookupError("no judge")

    with pytest.raises(LookupError, match="no judge"):
        await art.gather_trajectory_groups(
            [art.TrajectoryGroup([good()])], pbar_desc=None, after_each=judge
        )


async def test_trajectories_keep_their_order_and_the_places_of_exceptions():
    async def slow() -> art.Trajectory:
        await asyncio.sleep(0.02)
        return art.Trajectory(reward=3.0)

    async def several() -> list[art.Trajectory]:
        return [art.Trajectory(), art.Trajectory()]

    first, second, third = await art.gather_trajectories(
        [slow(), bad(), several()], pbar_desc=None, max_exceptions=1
    )
    assert first.reward == 3.0
    assert isinstance(second, KeyError)
    assert len(third) == 2
    with pytest.raises(KeyError):
        await art.gather_trajectories([good(), bad()], pbar_desc=None)


async def test_batches_hold_as_many_groups_as_asked():
    groups = [art.TrajectoryGroup([good(n)]) for n in range(5)]
    batches = [b async for b in art.trajectory_group_batches(groups, batch_size=2)]
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert sorted(t.reward for batch in batches for g in batch for t in g) == [0, 1, 2, 3, 4]
    late = [art.TrajectoryGroup([art.Trajectory(reward=n)]) for n in range(4)]
    rest = [b async for b in art.trajectory_group_batches(late, batch_size=2, skip_batches=1)]
    assert sorted(t.reward for g in rest[0] for t in g) == [2, 3]
