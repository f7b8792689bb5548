"""The arguments of a group."""

import asyncio

import pytest

import art_core as art
from art_core.base.errors import ConfigError


async def rollout(reward):
    return art.Trajectory(reward=reward)


async def test_exceptions_among_the_trajectories_are_failures_also_beside_coroutines():
    stored = art.RolloutFailure(reason="timeout", type="TimeoutError", message="late")
    group = art.TrajectoryGroup(
        [art.Trajectory(reward=1.0), ValueError("no"), rollout(2.0), stored],
        exceptions=[KeyError("more")],
        metadata={"scenario_id": "a"},
    )
    finished = await group
    assert finished.rewards == [1.0, 2.0]
    assert [str(f) for f in finished.failures] == [
        "ValueError: no",
        "TimeoutError: late",
        "KeyError: 'more'",
    ]
    assert finished.metadata == {"scenario_id": "a"}


async def test_what_asyncio_gather_returns_can_be_grouped():
    async def cancelled():
        raise asyncio.CancelledError

    async def broken():
        raise ValueError("no")

    results = await asyncio.gather(rollout(1.0), cancelled(), broken(), return_exceptions=True)
    group = art.TrajectoryGroup(results)
    assert group.rewards == [1.0]
    assert [f.type for f in group.failures] == ["CancelledError", "ValueError"]


@pytest.mark.parametrize("ends", [KeyboardInterrupt(), SystemExit(3)])
def test_what_ends_the_program_is_no_failure_of_an_attempt(ends):
    with pytest.raises(type(ends)):
        art.TrajectoryGroup([art.Trajectory(), ends])
    with pytest.raises(type(ends)):
        art.TrajectoryGroup(exceptions=[ends])


@pytest.mark.parametrize("given", [{"trajectories": [3]}, {"exceptions": ["no"]}])
def test_anything_else_is_refused_by_its_type(given):
    with pytest.raises(ConfigError, match=r", not (int|str)"):
        art.TrajectoryGroup(**given)
