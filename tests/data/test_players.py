"""Rollouts that give several trajectories, each for a group of its own."""

import asyncio

import pytest

import art_core as art
from art_core.base.errors import ConfigError, RolloutError


async def game(white, black, after=0.0):
    await asyncio.sleep(after)
    return {"white": art.Trajectory(reward=white), "black": art.Trajectory(reward=black)}


async def returning(value):
    return value


async def broken():
    raise ValueError("the board fell")


def gather(*groups, **options):
    return art.gather_trajectory_groups(groups, **{"pbar_desc": None} | options)


def group_of(*rollouts, **more):
    return art.TrajectoryGroup(rollouts, metadata={"scenario_id": "chess"}, **more)


async def test_each_player_has_a_group_with_its_attempts_in_order():
    games = group_of(game(1.0, -1.0, 0.02), game(0.0, 0.5))
    after = art.TrajectoryGroup([returning(art.Trajectory(reward=9.0))])
    white, black, other = await gather(games, after)
    assert (white.rewards, black.rewards, other.rewards) == ([1.0, 0.0], [-1.0, 0.5], [9.0])
    assert white.metadata == {"scenario_id": "chess", "player": "white"}
    assert black.metadata == {"scenario_id": "chess", "player": "black"}
    assert all(t.end_time is not None for t in (*white, *black))


async def test_a_list_names_players_by_their_place():
    pair = [art.Trajectory(reward=1.0), art.Trajectory(reward=2.0)]
    first, second = await gather(group_of(returning(pair), returning((art.Trajectory(),))))
    assert (first.rewards, first.metadata["player"]) == ([1.0, 0.0], "0")
    assert (second.rewards, second.metadata["player"]) == ([2.0], "1")


async def test_a_rollout_that_fails_is_a_failure_of_each_player():
    white, black = await gather(group_of(game(1.0, -1.0), broken()))
    for group in (white, black):
        assert len(group) == 1
        assert [str(failure) for failure in group.failures] == ["ValueError: the board fell"]


async def test_a_trajectory_that_is_refused_is_a_failure_of_its_player_only():
    odd = {"white": art.Trajectory(), "black": art.Trajectory(reward=float("nan"))}
    white, black = await gather(group_of(returning(odd), game(1.0, 2.0)))
    assert (white.rewards, white.failures) == ([0.0, 1.0], ())
    assert black.rewards == [2.0]
    assert [failure.reason for failure in black.failures] == ["bad_reward"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "the rollout returned no trajectory"),
        ([], "the rollout returned no trajectory"),
        ({"white": 3}, "the rollout returned int, not a Trajectory"),
        ([None], "the rollout returned NoneType, not a Trajectory"),
    ],
)
async def test_what_is_no_trajectory_is_a_failure(value, message):
    groups = await gather(group_of(returning(value), game(1.0, 2.0)))
    assert message in [failure.message for group in groups for failure in group.failures]


async def test_one_trajectory_for_two_players_is_a_failure_of_the_second():
    both = art.Trajectory(reward=1.0)
    first, second = await gather(group_of(returning([both, both])))
    assert (first.rewards, second.rewards) == ([1.0], [])
    assert second.failures[0].message == "the rollout returned one trajectory twice"


async def test_what_has_no_player_stays_in_a_group_of_its_own():
    given = art.Trajectory(reward=5.0)
    games = group_of(given, game(1.0, -1.0), returning(art.Trajectory(reward=6.0)), broken())
    rest, white, black = await gather(games)
    assert (rest.rewards, rest.metadata) == ([5.0, 6.0], {"scenario_id": "chess"})
    assert [len(group.failures) for group in (rest, white, black)] == [1, 1, 1]


async def test_metrics_and_logs_of_the_group_are_counted_once():
    games = group_of(game(1.0, -1.0), metrics={"moves": 3}, logs=["began"])
    white, black = await gather(games)
    assert (white.metrics, white.logs) == ({"moves": 3}, ["began"])
    assert (black.metrics, black.logs) == ({}, [])


async def test_each_players_group_is_judged():
    async def double(group):
        for trajectory in group:
            trajectory.reward *= 2
        return None if group.metadata["player"] == "black" else group

    (white,) = await gather(group_of(game(1.0, -1.0)), after_each=double)
    assert white.rewards == [2.0]


async def test_too_many_failures_keep_what_the_players_have():
    half = {"white": art.Trajectory(reward=1.0), "black": None}
    with pytest.raises(RolloutError, match="1 of 2 rollouts failed, more than") as caught:
        await gather(group_of(returning(half), game(0.0, 0.0, 5.0)), max_exceptions=0)
    white, black = caught.value.groups
    assert (white.rewards, black.rewards, len(black.failures)) == ([1.0], [], 1)


async def test_a_gathering_with_one_good_player_goes_on():
    half = {"white": art.Trajectory(reward=1.0), "black": None}
    white, black = await gather(group_of(returning(half)))
    assert (len(white), len(black)) == (1, 0)
    with pytest.raises(RolloutError, match="all 1 rollouts failed"):
        await gather(group_of(returning({"white": None, "black": None})))


async def test_an_awaited_group_cannot_become_several():
    assert (await group_of(returning([art.Trajectory(reward=1.0)]))).rewards == [1.0]
    with pytest.raises(ConfigError, match="for 2 groups. Use art.gather_trajectory_groups"):
        await group_of(game(1.0, 2.0))


async def test_trajectories_of_all_players_are_gathered_in_one_list():
    found = await art.gather_trajectories([game(1.0, 2.0), game(3.0, 4.0)], pbar_desc=None)
    assert [t.reward for t in found] == [1.0, 3.0, 2.0, 4.0]
