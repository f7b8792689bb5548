"""The parts of a pipeline by themselves: levels over time, failures, leases, batches, figures."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipelined import ask

import art_core as art
from art_core.base.errors import HistoryError, RolloutFailure
from art_core.log.history import MetricsRow
from art_core.pipelines import workers as workers_module
from art_core.pipelines.batches import Batches, off_policy
from art_core.pipelines.config import PipelineConfig
from art_core.pipelines.evaluations import UsedSteps
from art_core.pipelines.gauge import Gauge
from art_core.pipelines.status import figures
from art_core.pipelines.workers import Failures, Workers
from art_core.queue.values import Lease, Leased, Scenario
from art_core.rl.config import TrainConfig
from waiting import until_async


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=8))
def test_a_gauge_sums_its_level_over_time(changes):
    now = [0]
    gauge = Gauge(clock=lambda: float(now[0]))
    area = seconds = 0
    for level, passed in changes:
        gauge.set(level)
        now[0] += passed
        area += level * passed
        seconds += passed * (level > 0)
    assert gauge.take() == (area, seconds)
    assert gauge.take() == (0, 0)


def test_a_gauge_counts_those_in_a_block():
    gauge = Gauge()
    with gauge.one_more(), gauge.one_more():
        assert gauge.level == 2
    assert gauge.level == 0


def test_failures_are_counted_anew_in_each_step():
    failures = Failures(PipelineConfig(attempts=2, min_batch_size=2, max_exceptions=1))
    failed, made = RolloutFailure.of(ValueError("no")), art.Trajectory()
    failures.count({None: failed})
    failures.count({None: made})
    failures.step_ended()
    failures.count({None: made, "b": failed})
    with pytest.raises(art.RolloutError, match="2 of 2 rollouts since the last step"):
        failures.count({None: failed})


def test_one_useful_attempt_in_a_batch_is_enough():
    failures = Failures(PipelineConfig(attempts=2, min_batch_size=1))
    failed = RolloutFailure.of(ValueError("no"))
    for _ in range(3):
        failures.count({None: failed})
        failures.count({None: art.Trajectory()})
    with pytest.raises(art.RolloutError, match="the last 2 rollouts failed"):
        for _ in range(2):
            failures.count({None: failed})


@pytest.mark.parametrize(
    ("options", "refills"),
    [
        ({}, True),
        ({"advantage_baseline": "rloo"}, True),
        ({"advantage_baseline": "scenario_mean"}, False),
        ({"advantage_baseline": "value"}, False),
        ({"loss_fn": "distill"}, False),
        ({"distill_coef": 0.5}, False),
        ({"reward_weights": {"reward": 1.0}}, False),
    ],
)
def test_groups_without_spread_are_refilled_where_they_teach_nothing(options, refills):
    training = TrainConfig.of(**options)
    made = Batches.of(None, None, PipelineConfig(), None, training)
    assert made.refills == refills
    assert not Batches.of(None, None, PipelineConfig(zero_variance="drop"), None, training).refills


def turn(version):
    content = [{"token": "a", "logprob": -1.0}]
    choice = {
        "message": {"role": "assistant", "content": "a"},
        "finish_reason": "stop",
        "prompt_token_ids": [1],
        "token_ids": [2],
        "logprobs": {"content": content},
    }
    return choice if version is None else choice | {"policy_version": version}


def test_ages_are_those_of_turns_with_known_weights():
    one = art.Trajectory(messages_and_choices=[turn(3), turn(4), turn(None)])
    other = art.Trajectory(messages_and_choices=[turn(5), {"role": "user", "content": ""}])
    one.additional_histories.append(art.History(messages_and_choices=[turn(1)]))
    unknown = art.Trajectory(messages_and_choices=[turn(None)])
    found = off_policy([art.TrajectoryGroup([one, other]), art.TrajectoryGroup([unknown])], 5)
    assert found == {
        "offpolicy/steps_mean": (2 + 1 + 4 + 0) / 4,
        "offpolicy/steps_max": 4.0,
        "offpolicy/mixed_share": 0.5,
    }
    assert off_policy([art.TrajectoryGroup([unknown])], 5) == {}


def test_the_checkpoints_of_used_steps_are_kept(tmp_path):
    model = art.TrainableModel(
        name="m", project="p", base_model="b", base_path=tmp_path, keep_checkpoints=lambda _: [7]
    )
    before = model.keep_checkpoints
    used = UsedSteps()
    with used.kept_by(model):
        with used.using(2), used.using(2), used.using(3):
            assert model.keep_checkpoints(None) == {2, 3, 7}
        assert model.keep_checkpoints(None) == {7}
    assert model.keep_checkpoints is before


def test_a_state_has_the_figures_of_the_last_row():
    assert figures(None, ready=2, running=3, evaluating=0) == {"ready": "2", "running": "3"}
    metrics = {
        "time/step_wall_s": 4.0,
        "offpolicy/steps_mean": 1.25,
        "pipeline/cum/num_groups_stale": 2.0,
        "throughput/step_trainer_idle_s": 1.0,
        "throughput/step_actor_idle_s": 6.0,
        "data/step_actor_tokens": 100.0,
        "costs/cum/all": 0.5,
    }
    row = MetricsRow(1, 1, 1, "train", datetime.now(UTC), metrics)
    assert figures(row, ready=0, running=1, evaluating=1) == {
        "ready": "0",
        "running": "1",
        "evaluating": "1",
        "age": "1.2",
        "stale": "2",
        "trainer idle": "25%",
        "actor idle": "100%",
        "tok/s": "25",
        "$": "0.5000",
    }
    bare = figures(attrs.evolve(row, metrics={}), ready=0, running=0, evaluating=0)
    assert bare == {"ready": "0", "running": "0"}


class OneLease:
    """A queue with one lease, whose renewals a test decides, and any number after `stop`."""

    def __init__(self, renewals=()):
        self.renewals, self.leased, self.submitted, self.returned = list(renewals), 0, [], []
        self.many = False

    async def lease(self, worker, n, *, wait_s):
        await asyncio.sleep(0)
        if self.leased and not self.many:
            await asyncio.sleep(0.01)
            return Leased(leases=(), finished=True)
        self.leased += 1
        scenario = Scenario(epoch=0, index=0, value="s")
        lease = Lease(
            key=f"k{self.leased}",
            group=1,
            slot=0,
            attempt=1,
            scenario=scenario,
            seconds=1.0,
            step=0,
        )
        return Leased(leases=(lease,), finished=False)

    async def submit(self, key, outcome, *, step, paid):
        self.submitted.append((key, outcome, step))

    async def renew(self, key):
        found = self.renewals.pop(0) if self.renewals else True
        if isinstance(found, Exception):
            raise found
        return found

    async def give_back(self, key, *, paid=()):
        self.returned.append(key)
        return True


class NoSupply:
    scenarios = ("s",)

    async def refill(self, leased):
        pass


@pytest.fixture
def workers_of(model):
    def make(queue, rollout, **options):
        config = PipelineConfig(**options)
        return Workers(
            queue, NoSupply(), model, rollout, config, UsedSteps(), Failures(config), step=4
        )

    return make


async def test_a_lease_that_is_over_ends_its_attempt(workers_of, monkeypatch):
    monkeypatch.setattr(workers_module, "LEASE_S", 0.03)
    queue = OneLease([HistoryError("the disk is full"), True, False])
    ended = []

    async def rollout(model, scenario):
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(scenario)

    workers = workers_of(queue, rollout)
    await workers.run()
    assert (ended, queue.submitted, queue.renewals) == (["s"], [], [])
    assert workers.running.level == 0


async def test_attempts_that_run_are_given_back_at_the_end(workers_of):
    queue = OneLease()

    async def rollout(model, scenario):
        await asyncio.Event().wait()

    workers = workers_of(queue, rollout, max_concurrent=1)
    running = asyncio.create_task(workers.run())
    await until_async(lambda: workers.running.level == 1)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert (queue.submitted, queue.returned) == ([], ["k1"])


async def test_leases_that_come_after_the_end_are_given_back(workers_of):
    queue = OneLease()
    queue.many = True
    workers = workers_of(queue, None)

    async def lease(worker, n, *, wait_s):
        workers.stop()
        return await OneLease.lease(queue, worker, n, wait_s=wait_s)

    queue.lease = lease
    await workers.run()
    assert (queue.returned, queue.submitted) == (["k1"], [])


async def test_it_registers_a_model_that_is_not(tmp_path, backend):
    made = art.TrainableModel(
        name="n", project="p", base_model="echo", base_path=tmp_path, backend=backend, sinks=[]
    )
    result = await art.pipeline(
        made, ["a"], ask, attempts=2, min_batch_size=1, progress=False, learning_rate=lambda n: 1e-5
    )
    assert result.step == 1
    await made.close()


def test_by_default_groups_are_at_most_four_steps_old():
    config = PipelineConfig()
    assert (config.max_steps_off_policy, config.min_batch_size, config.groups_ahead) == (4, 8, 40)
