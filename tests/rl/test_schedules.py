import math

import pytest

import art_core as art
from art_core.base.errors import ConfigError
from art_core.rl.schedules import options_at, rate_at
from art_core.testing.echo import EchoBackend


def test_a_constant_schedule_has_its_peak_at_every_step():
    assert [art.Schedule(3.0)(step) for step in (0, 1, 1000)] == [3.0, 3.0, 3.0]


def test_a_warm_up_rises_in_equal_parts_and_begins_above_0():
    schedule = art.Schedule(4.0, warmup_steps=4)
    assert [schedule(step) for step in range(6)] == [1.0, 2.0, 3.0, 4.0, 4.0, 4.0]


def test_a_linear_schedule_falls_in_equal_parts():
    schedule = art.Schedule(4.0, "linear", total_steps=6, warmup_steps=2)
    assert [schedule(step) for step in range(6)] == [2.0, 4.0, 4.0, 3.0, 2.0, 1.0]


def test_a_cosine_schedule_is_at_the_middle_halfway_and_stays_at_its_final_rate():
    schedule = art.Schedule(3.0, "cosine", total_steps=10, final=1.0)
    assert schedule(0) == 3.0
    assert schedule(5) == pytest.approx(2.0)
    assert schedule(1) == pytest.approx(1 + 2 * (1 + math.cos(math.pi / 10)) / 2)
    assert schedule(10) == schedule(99) == 1.0


def test_a_step_after_the_end_is_refused():
    with pytest.raises(ConfigError, match="ends after 3 steps, and this is step 4"):
        art.Schedule(1.0, "linear", total_steps=3)(3)


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_a_schedule_without_its_total_steps_says_what_to_give(shape):
    schedule = art.Schedule(1e-5, shape)
    with pytest.raises(ConfigError, match=rf'art.Schedule\(1e-05, "{shape}", total_steps=...\)'):
        schedule(0)
    assert rate_at(schedule, 0, total_steps=5) == 1e-5


def test_known_total_steps_do_not_replace_those_of_the_schedule():
    assert rate_at(art.Schedule(4.0, "linear", total_steps=4), 2, total_steps=100) == 2.0
    assert rate_at(art.Schedule(4.0), 2, total_steps=100) == 4.0
    assert rate_at(4.0, 2, total_steps=100) == 4.0


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"peak": 0.0}, "peak must be a finite number above 0"),
        ({"peak": 1.0, "shape": "cosin"}, "no shape 'cosin'.*Did you mean 'cosine'"),
        ({"peak": 1.0, "warmup_steps": -1}, "warmup_steps must be a step"),
        ({"peak": 1.0, "shape": "linear", "total_steps": 0}, "total_steps must be a whole number"),
        ({"peak": 1.0, "final": 0.5}, "a constant schedule has no end"),
        ({"peak": 1.0, "total_steps": 5}, "a constant schedule has no end"),
        ({"peak": 1.0, "shape": "linear", "total_steps": 5, "warmup_steps": 5}, "fewer"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(values, reason):
    with pytest.raises(ConfigError, match=reason):
        art.Schedule(**values)


@pytest.mark.parametrize("odd", [0, -1.0, math.nan, None, "1e-5", True])
def test_a_function_must_return_a_number_above_0(odd):
    with pytest.raises(ConfigError, match="learning_rate must be .* at step 7"):
        rate_at(lambda step: odd, 7)
    with pytest.raises(ConfigError, match=r"learning_rate must be [^7]*$"):
        rate_at(odd, 7)


def test_other_options_stay_as_they_are():
    given = {"loss_fn": "ppo", "learning_rate": lambda step: step + 1.0}
    assert options_at(given, 2) == {"loss_fn": "ppo", "learning_rate": 3.0}
    assert options_at({"learning_rate": -1.0}, 2) == {"learning_rate": -1.0}
    assert options_at({}, 2) == {}


@pytest.mark.asyncio
async def test_a_schedule_that_has_ended_is_refused_before_groups_are_stored(tmp_path):
    backend = EchoBackend()
    model = art.TrainableModel(
        name="m", project="p", base_model="b", base_path=tmp_path, backend=backend, sinks=[]
    )
    schedule = art.Schedule(1e-5, "cosine", total_steps=1)
    attempts = [art.Trajectory(messages_and_choices=[], reward=r) for r in (0.0, 0.0)]
    result = await model.train([art.TrajectoryGroup(attempts)], learning_rate=schedule)
    assert result.metrics["loss/learning_rate"] == 1e-5
    with pytest.raises(ConfigError, match="ends after 1 steps"):
        await model.train([art.TrajectoryGroup(attempts)], learning_rate=schedule)
    assert not (model.run_dir / "trajectories" / "train" / "0002.jsonl").exists()
    await model.close()
    await backend.close()


def test_the_options_of_one_step_name_what_takes_a_schedule():
    with pytest.raises(ConfigError, match="learning_rate of one step is a number.*model.train"):
        art.TrainConfig(learning_rate=art.Schedule(1e-5))
