"""Accounts of paid calls, beside what rollouts and models do with them."""

import asyncio
import copy
from contextlib import nullcontext

import attrs
import pytest

import art_core as art
from art_core.data import account
from art_core.data.account import UNOWNED, Account


class Call:
    def __init__(self):
        self.owners = []

    def book(self, owner):
        self.owners.append(owner)

    def quote(self):
        return 0.5


def test_an_account_takes_over_the_calls_of_another_and_has_one_owner():
    first, second, calls = Account(), Account(), [Call(), Call()]
    for call in calls:
        first.add(call)
    first.absorb(first)
    second.settle("first owner")
    second.settle("second owner")
    second.absorb(first)
    assert [call.owners for call in calls] == [["first owner"]] * 2
    assert not first.waiting


def test_a_group_that_takes_another_account_has_the_calls_of_both():
    call, more = Call(), Account()
    more.add(call)
    group = art.TrajectoryGroup([art.Trajectory()]).paid_by(Account()).paid_by(more)
    (only,) = group.accounts()
    assert list(only.calls) == [call]
    assert art.TrajectoryGroup(group.trajectories).accounts() == [only]


def test_an_account_that_is_gone_leaves_its_calls_to_the_one_above():
    above, call = Account(UNOWNED), Call()
    Account(above).add(call)
    assert list(above.calls) == [call]
    above.settle("owner")
    assert above.usd == 0.5
    late = Call()
    below = Account(above)
    below.add(late)
    del below
    account.flush()
    assert (call.owners, late.owners) == (["owner"], ["owner"])


def test_calls_are_forgotten_in_a_forked_process():
    kept = Account()
    kept.add(Call())
    account._lock.acquire()  # as before a fork
    account.drop_calls()
    assert not kept.waiting
    assert account._lock.acquire(blocking=False)
    account._lock.release()


def test_the_account_is_no_part_of_a_trajectorys_values():
    (trajectory,) = art.TrajectoryGroup([art.Trajectory(reward=1.0)]).paid_by(Account())
    assert trajectory.account is not None
    values = attrs.asdict(trajectory)
    assert art.Trajectory(**values) == trajectory == copy.deepcopy(trajectory)
    assert copy.deepcopy(trajectory).account is None
    assert "account" not in values and "Account" not in repr(trajectory)


@pytest.mark.parametrize("active", [False, True])
async def test_an_attempt_knows_what_its_own_calls_cost(active, tmp_path):
    prices = {"prompt_per_million": 1.0, "completion_per_million": 1.0}
    model = art.Model(name="m", project="p", base_path=tmp_path, sinks=[])

    @art.track_api_cost(source="x", provider="x", model_name="m", **prices)
    async def call(tokens):
        return {"usage": {"prompt_tokens": tokens, "completion_tokens": 0}}

    @art.track_api_cost(source="y", provider="x", model_name="m", **prices)
    def in_a_thread(tokens):
        return {"usage": {"prompt_tokens": tokens, "completion_tokens": 0}}

    async def rollout(tokens):
        await call(tokens)
        if tokens:
            await asyncio.to_thread(in_a_thread, 1_000_000)
        return art.Trajectory()

    with model.metrics_builder("train").activate_context() if active else nullcontext():
        (group,) = await art.gather_trajectory_groups(
            [art.TrajectoryGroup(rollout(n) for n in (2_000_000, 3_000_000, 0))], pbar_desc=None
        )
    assert [t.metadata.get("usd") for t in group] == [3.0, 4.0, None]
    row = await model.log([group], split="train", step=1)
    assert row.metrics["costs/all"] == 7.0
    await model.close()
