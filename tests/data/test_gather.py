import asyncio
import io
import math
from contextlib import redirect_stderr, suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

import art_core as art
from art_core.base.errors import ConfigError, RolloutError
from art_core.data import outcome as module


async def rollout(reward=1.0, after=0.0):
    await asyncio.sleep(after)
    return art.Trajectory(reward=reward)


async def broken(message="no", after=0.0):
    await asyncio.sleep(after)
    raise ValueError(message)


async def returning(value):
    return value


def gather(*groups, **options):
    return art.gather_trajectory_groups(groups, **{"pbar_desc": None} | options)


async def only_failure(attempt, **options):
    """Gather one attempt beside one that succeeds; return how it failed."""
    (group,) = await gather(art.TrajectoryGroup([attempt, rollout(0.5)]), **options)
    assert group.rewards == [0.5]
    (failure,) = group.failures
    return failure


async def test_groups_come_back_in_order_with_what_their_rollouts_gave():
    first = art.TrajectoryGroup([rollout(1.0, 0.02), rollout(2.0)], metadata={"scenario_id": "a"})
    second = art.TrajectoryGroup(rollout(r) for r in (3.0, 4.0))
    one, two = await gather(first, second)
    assert (one.rewards, two.rewards) == ([1.0, 2.0], [3.0, 4.0])
    assert one.metadata == {"scenario_id": "a"}
    assert all(t.end_time is not None for t in (*one, *two))


async def test_all_rollouts_of_all_groups_run_at_the_same_time():
    all_run = asyncio.Barrier(50)

    async def meets():
        await all_run.wait()
        return art.Trajectory()

    groups = await gather(*[art.TrajectoryGroup(meets() for _ in range(10)) for _ in range(5)])
    assert [len(group) for group in groups] == [10] * 5


async def test_groups_that_are_still_to_be_made_are_made_at_the_same_time():
    all_made = asyncio.Barrier(10)

    async def make(reward):
        await all_made.wait()
        return art.TrajectoryGroup([rollout(reward)])

    groups = await gather(*[make(float(i)) for i in range(10)])
    assert [g.rewards for g in groups] == [[float(i)] for i in range(10)]


async def test_nothing_to_gather_gives_nothing():
    assert await gather() == []
    (group,) = await gather(art.TrajectoryGroup())
    assert len(group) == 0


@pytest.mark.parametrize("odd", [3, [art.Trajectory()], returning(art.Trajectory())], ids=type)
async def test_what_is_no_group_is_refused_by_its_type(odd):
    with pytest.raises(ConfigError, match=r"not (int|list|Trajectory)\."):
        await gather(odd)


async def test_a_rollout_that_raises_is_data_with_its_traceback():
    failure = await only_failure(broken("no such table"))
    assert (failure.reason, str(failure)) == ("raised", "ValueError: no such table")
    assert "in broken" in failure.traceback


class HalfMadeError(Exception):
    def __str__(self):
        return f"status {self.status}"

    __repr__ = __str__


class Panic(BaseException):
    """What code in Rust raises; pytest.fail raises one too."""


class UntilShown(BaseException):
    """Its traceback cannot be made either."""

    @property
    def __cause__(self):
        raise RuntimeError("no cause")


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (HalfMadeError(), "<no message: its __str__ raised AttributeError>"),
        (Panic("at the core"), "at the core"),
        (UntilShown("half"), "half"),
        (GeneratorExit(), ""),
        (ExceptionGroup("two", [HalfMadeError(), ValueError()]), "two (2 sub-exceptions)"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_an_odd_exception_is_data_and_costs_no_other_attempt(odd, message):
    async def raises():
        raise odd

    failure = await only_failure(raises())
    assert (failure.type, failure.message) == (type(odd).__name__, message)
    assert "in raises" in failure.traceback


async def test_an_odd_exception_of_the_judge_loses_no_rollout():
    async def judge(_):
        raise odd

    for odd in (HalfMadeError(), Panic(), asyncio.CancelledError()):
        text = f"after_each failed .{type(odd).__name__}"
        with pytest.raises(RolloutError, match=text) as caught:
            await gather(art.TrajectoryGroup([rollout(2.0)]), after_each=judge)
        assert [g.rewards for g in caught.value.groups] == [[2.0]]


def test_a_rollout_that_ends_the_program_ends_it():
    async def exits():
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        asyncio.run(gather(art.TrajectoryGroup([exits()])))


def test_a_judge_that_ends_the_program_ends_it():
    async def judge(_):
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        asyncio.run(gather(art.TrajectoryGroup([art.Trajectory()]), after_each=judge))


async def test_a_coroutine_that_raises_instead_of_making_a_group_is_a_group_with_a_failure():
    good, bad = await gather(art.TrajectoryGroup([rollout(1.0)]), broken("no scenario"))
    assert (good.rewards, bad.rewards) == ([1.0], [])
    assert [str(failure) for failure in bad.failures] == ["ValueError: no scenario"]
    with pytest.raises(RolloutError, match="all 2 rollouts failed; the first: ValueError: a"):
        await gather(broken("a"), broken("b"))


def test_making_a_group_may_end_the_program():
    async def exits():
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        asyncio.run(gather(exits()))


class Untouchable:
    def __getattr__(self, name):
        raise RuntimeError(f"{name} is not here")

    __float__ = None


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (art.Trajectory(messages_and_choices=[Untouchable()]), "wrong_type"),
        (art.Trajectory(messages_and_choices=None), "wrong_type"),
        (art.Trajectory(additional_histories=[[]]), "wrong_type"),
        (art.Trajectory(reward=Untouchable()), "bad_reward"),
        (art.Trajectory(turn_rewards=[1.0]), "bad_reward"),
        (art.Trajectory(turn_rewards="1"), "bad_reward"),
        (art.Trajectory(turn_rewards=["much"]), "bad_reward"),
    ],
    ids=["item", "no conversation", "no history", "reward", "turns", "text", "no number"],
)
async def test_a_trajectory_that_cannot_be_looked_at_is_data(result, reason):
    failure = await only_failure(returning(result))
    assert failure.reason == reason


async def test_at_most_so_many_rollouts_run_at_the_same_time_and_their_timeouts_begin_with_them():
    running, most = 0, 0

    async def counted():
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1
        return art.Trajectory()

    groups = [art.TrajectoryGroup(counted() for _ in range(10)) for _ in range(3)]
    done = await gather(*groups, max_concurrent=4, timeout=5.0)
    assert most == 4
    assert [len(group) for group in done] == [10] * 3
    assert len(await art.gather_trajectories([counted()], pbar_desc=None, max_concurrent=1)) == 1


@pytest.mark.parametrize("odd", [0, -1, 2.0, True, "4"])
async def test_a_limit_on_rollouts_that_is_no_count_is_refused(odd):
    with pytest.raises(ConfigError, match="max_concurrent must be a whole number of at least 1"):
        await gather(max_concurrent=odd)


async def test_an_early_end_ends_rollouts_that_were_waiting_too():
    task = asyncio.ensure_future(rollout(after=60.0))
    waiting = art.TrajectoryGroup([broken(), rollout(), rollout(), rollout(), task])
    with pytest.raises(RolloutError, match="max_exceptions"):
        await gather(waiting, max_concurrent=1, max_exceptions=0)
    await asyncio.wait((task,), timeout=1.0)
    assert task.cancelled()


async def test_a_rollout_that_takes_too_long_is_data():
    failure = await only_failure(rollout(1.0, 60.0), timeout=0.05)
    assert (failure.reason, failure.type) == ("timeout", "TimeoutError")
    assert failure.message == "the rollout took longer than 0.05 s"


async def test_a_rollouts_own_timeout_is_an_exception_like_others():
    async def times_out():
        raise TimeoutError("the database")

    failure = await only_failure(times_out(), timeout=5.0)
    assert (failure.reason, failure.message) == ("raised", "the database")


async def test_a_cancellation_inside_a_rollout_fails_that_rollout_alone():
    async def cancels_itself():
        task = asyncio.ensure_future(asyncio.sleep(60))
        task.cancel()
        await task

    assert (await only_failure(cancels_itself())).type == "CancelledError"


async def test_a_rollout_that_returns_something_else_is_data():
    failure = await only_failure(returning(0.7))
    assert failure.reason == "wrong_type"
    assert failure.message == "the rollout returned float, not a Trajectory"


async def test_a_conversation_that_holds_no_messages_is_data():
    failure = await only_failure(returning(art.Trajectory(messages_and_choices=["hello"])))
    assert failure.reason == "wrong_type"
    assert "not str" in failure.message


@pytest.mark.parametrize("reward", [math.nan, math.inf, "good", None, 10**400, [1.0]], ids=repr)
async def test_a_reward_that_is_no_finite_number_is_data(reward):
    failure = await only_failure(returning(art.Trajectory(reward=reward)))
    assert (failure.reason, failure.message) == ("bad_reward", "the reward is not a finite number")


async def test_a_reward_becomes_a_float():
    (group,) = await gather(art.TrajectoryGroup([rollout(True), rollout(2)]))
    assert group.rewards == [1.0, 2.0]
    assert all(type(r) is float for r in group.rewards)


def choice(version):
    return {
        "message": {"role": "assistant", "content": "yes"},
        "finish_reason": "stop",
        "prompt_token_ids": [1],
        "token_ids": [2],
        "logprobs": {"content": [{"logprob": -1.0}]},
        "policy_version": version,
    }


async def test_policy_versions_are_those_of_the_first_and_the_last_choice():
    turns = [{"role": "user", "content": "hi"}, choice(4), choice(None), choice(5)]
    spoken = art.Trajectory(messages_and_choices=turns)
    given = art.Trajectory(
        messages_and_choices=turns, initial_policy_version=1, final_policy_version=2
    )
    (group,) = await gather(art.TrajectoryGroup([returning(spoken), returning(given), rollout()]))
    versions = [(t.initial_policy_version, t.final_policy_version) for t in group]
    assert versions == [(4, 5), (1, 2), (None, None)]


@pytest.mark.parametrize(
    ("limit", "failures", "ends"),
    [(None, 3, False), (3, 3, False), (2, 3, True), (0.75, 3, False), (0.5, 3, True), (0, 1, True)],
)
async def test_failures_beyond_the_limit_end_the_gathering(limit, failures, ends):
    attempts = [broken() for _ in range(failures)] + [rollout() for _ in range(4 - failures)]
    gathering = gather(art.TrajectoryGroup(attempts), max_exceptions=limit)
    if ends:
        with pytest.raises(RolloutError, match="more than max_exceptions allows; the first: Value"):
            await gathering
    else:
        assert len((await gathering)[0].failures) == failures


async def test_an_early_end_keeps_what_every_group_has():
    done = art.TrajectoryGroup([rollout(1.0), rollout(2.0)], metadata={"scenario_id": "done"})
    half = art.TrajectoryGroup([rollout(3.0), broken("late", 0.05), rollout(4.0, 60.0)])
    waiting = art.TrajectoryGroup([rollout(5.0, 60.0)])
    with pytest.raises(RolloutError) as caught:
        await gather(done, half, waiting, max_exceptions=0)
    kept = caught.value.groups
    assert [g.rewards for g in kept] == [[1.0, 2.0], [3.0], []]
    assert kept[0].metadata == {"scenario_id": "done"}
    assert [f.message for f in kept[1].failures] == ["late"]


async def test_an_early_end_leaves_out_groups_that_were_dropped():
    async def drop(group):
        return None

    groups = [art.TrajectoryGroup([rollout()]), art.TrajectoryGroup([broken("late", 0.05)])]
    with pytest.raises(RolloutError) as caught:
        await gather(*groups, max_exceptions=0, after_each=drop)
    (kept,) = caught.value.groups
    assert len(kept.failures) == 1


async def test_a_gathering_in_which_every_rollout_failed_is_an_error_with_the_first_reason():
    groups = [art.TrajectoryGroup([broken("down"), broken()]), art.TrajectoryGroup([broken()])]
    with pytest.raises(RolloutError, match="all 3 rollouts failed; the first: ValueError: down"):
        await gather(*groups)


async def test_the_error_of_a_gathering_that_failed_whole_has_the_failures():
    with pytest.raises(RolloutError) as caught:
        await gather(art.TrajectoryGroup([broken("down")], metadata={"scenario_id": "a"}))
    (group,) = caught.value.groups
    assert (group.metadata, group.failures[0].message) == ({"scenario_id": "a"}, "down")


@pytest.mark.parametrize("odd", [-1, math.nan, True, -0.5, "3"])
async def test_a_limit_that_is_neither_count_nor_share_is_refused(odd):
    with pytest.raises(ConfigError, match="max_exceptions must be a count or a share"):
        await gather(art.TrajectoryGroup(), max_exceptions=odd)


@pytest.mark.parametrize("odd", [-1, math.nan, True, "3", [3], 10**400])
async def test_a_timeout_that_is_no_number_of_seconds_is_refused(odd):
    with pytest.raises(ConfigError, match="timeout must be a number of seconds"):
        await gather(art.TrajectoryGroup(), timeout=odd)
    assert await gather(art.TrajectoryGroup(), timeout=Decimal("0.5"))


async def test_each_finished_group_may_be_judged_replaced_or_dropped():
    async def judge(group):
        if group.metadata["id"] == 2:
            return None
        for trajectory in group:
            trajectory.reward *= 10
        return group

    groups = [art.TrajectoryGroup([rollout(float(i))], metadata={"id": i}) for i in (1, 2, 3)]
    judged = await gather(*groups, after_each=judge)
    assert [g.rewards for g in judged] == [[10.0], [30.0]]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (KeyError("judge"), r"after_each failed \(KeyError: 'judge'\)"),
        (RolloutError("all judges are down"), "after_each failed .*all judges are down"),
        ([], "it returned list, not a TrajectoryGroup or None"),
    ],
    ids=repr,
)
async def test_a_judge_that_fails_ends_the_gathering_and_loses_no_rollout(answer, says):
    async def judge(group):
        if group.metadata["id"] == "good":
            return art.TrajectoryGroup([art.Trajectory(reward=9.0)])
        if isinstance(answer, Exception):
            raise answer
        return answer

    stopped = asyncio.Event()

    async def long():
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()

    groups = [
        art.TrajectoryGroup([rollout(1.0)], metadata={"id": "good"}),
        art.TrajectoryGroup([rollout(2.0, 0.02), broken(after=0.02)], metadata={"id": "bad"}),
        art.TrajectoryGroup([rollout(3.0), long()], metadata={"id": "running"}),
    ]
    with pytest.raises(RolloutError, match=says) as caught:
        await gather(*groups, after_each=judge)
    assert stopped.is_set()
    assert [g.rewards for g in caught.value.groups] == [[9.0], [2.0], [3.0]]
    assert len(caught.value.groups[1].failures) == 1
    assert isinstance(caught.value.__cause__, type(answer) if answer else TypeError)


async def swallows_cancellation(end):
    while not end.is_set():
        with suppress(asyncio.CancelledError):
            await end.wait()
    raise ValueError("at last")


async def left_to_its_end(end):
    """Let the rollout that was left behind fail: asyncio logs a failure that no task retrieved."""
    (task,) = (t for t in asyncio.all_tasks() if "swallows_cancellation" in repr(t))
    end.set()
    await asyncio.wait((task,))
    assert not task._log_traceback


async def test_a_rollout_that_swallows_its_cancellation_is_left_behind_and_named(
    monkeypatch, caplog
):
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.05)
    end = asyncio.Event()
    failure = await only_failure(swallows_cancellation(end), timeout=0.05)
    assert failure.reason == "timeout"
    assert failure.message.endswith("0.05 s, and goes on although it was cancelled")
    assert "swallows_cancellation" in caplog.text
    assert "does it catch CancelledError?" in caplog.text
    await left_to_its_end(end)


async def test_an_early_end_does_not_wait_for_a_rollout_that_swallows_its_cancellation(
    monkeypatch, caplog
):
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.05)
    end = asyncio.Event()
    with pytest.raises(RolloutError, match="max_exceptions"):
        await gather(art.TrajectoryGroup([broken(), swallows_cancellation(end)]), max_exceptions=0)
    assert "swallows_cancellation" in caplog.text
    await left_to_its_end(end)


async def test_a_rollout_may_answer_its_cancellation_with_what_it_has():
    async def answers():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return art.Trajectory(reward=0.25)

    (group,) = await gather(art.TrajectoryGroup([answers(), rollout(0.5)]), timeout=0.05)
    assert sorted(group.rewards) == [0.25, 0.5]


async def test_cancelling_the_gathering_cancels_every_rollout():
    ended = []

    async def long():
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("x")

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(gather(art.TrajectoryGroup(long() for _ in range(3))), 0.02)
    assert len(ended) == 3


async def test_loose_rollouts_give_the_trajectories_of_those_that_did_not_fail():
    attempts = [art.Trajectory(reward=0.5), rollout(1.0), broken()]
    gathered = await art.gather_trajectories(attempts, pbar_desc=None)
    assert [t.reward for t in gathered] == [0.5, 1.0]
    with pytest.raises(RolloutError):
        await art.gather_trajectories([rollout(), broken()], pbar_desc=None, max_exceptions=0)


async def test_the_progress_bar_counts_rollouts_and_shows_reward_and_failures():
    screen = io.StringIO()
    with redirect_stderr(screen):
        await gather(
            art.TrajectoryGroup([broken(), rollout(1.0, 0.01), rollout(2.0, 0.01)]),
            pbar_desc="walk",
        )
    assert "walk" in screen.getvalue()
    assert "3/3" in screen.getvalue()
    assert "reward=1.500" in screen.getvalue()
    assert "failed=1" in screen.getvalue()


async def test_a_rollouts_time_begins_with_the_rollout_and_not_with_its_trajectory():
    at_once = []

    async def late():
        at_once.append(datetime.now(UTC))
        await asyncio.sleep(0.01)
        return art.Trajectory()

    ((done,),) = await gather(art.TrajectoryGroup([late()]))
    assert done.start_time <= at_once[0]
    assert done.metrics["duration"] == (done.end_time - done.start_time).total_seconds()


async def test_times_without_a_zone_are_the_machines_and_end_no_gathering():
    begun = datetime.now() - timedelta(minutes=1)  # noqa: DTZ005

    async def answers():
        trajectory = art.Trajectory(reward=1.0, start_time=begun)
        trajectory.end_time = begun + timedelta(seconds=5)
        return trajectory

    group = art.TrajectoryGroup([answers(), rollout(0.5)])
    (done,) = await gather(group)
    assert done.rewards == [1.0, 0.5]
    assert done.trajectories[0].start_time.timestamp() == begun.timestamp()
    assert done.trajectories[0].end_time.timestamp() == begun.timestamp() + 5
