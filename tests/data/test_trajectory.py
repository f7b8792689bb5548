import pickle
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import attrs
import pytest

import art_core as art
from art_core.base.errors import ConfigError, RolloutFailure
from art_core.data import trajectory as module


def test_messages_are_those_that_a_next_request_needs():
    choice = {"message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}
    trajectory = art.Trajectory(messages_and_choices=[{"role": "user", "content": "hi"}, choice])
    expected = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    assert trajectory.messages() == expected
    assert art.History(messages_and_choices=[choice]).messages() == expected[1:]


def test_histories_begin_with_the_main_conversation():
    aside = art.History(messages_and_choices=[{"role": "user", "content": "aside"}])
    tools = [{"type": "function", "function": {"name": "look"}}]
    trajectory = art.Trajectory(
        messages_and_choices=[{"role": "user", "content": "main"}],
        tools=tools,
        additional_histories=[aside],
    )
    main, other = trajectory.histories()
    assert main.messages_and_choices is trajectory.messages_and_choices
    assert main.tools is tools
    assert other is aside


def test_a_trajectory_keeps_lines_of_text():
    trajectory = art.Trajectory()
    trajectory.log("first")
    trajectory.log("second")
    assert trajectory.logs == ["first", "second"]


def test_durations_of_one_name_add_up_also_when_the_block_fails(monkeypatch):
    clock = SimpleNamespace(monotonic=iter([100.0, 100.5, 200.0, 200.25]).__next__)
    monkeypatch.setattr(module, "time", clock)
    trajectory = art.Trajectory(metrics={"search_duration": 10.0})
    with trajectory.track_duration("search"):
        pass
    with pytest.raises(KeyError), trajectory.track_duration("search"):
        raise KeyError
    assert trajectory.metrics["search_duration"] == 10.75


def test_the_end_of_an_attempt_is_stamped_once(monkeypatch):
    begun = datetime(2026, 3, 1, tzinfo=UTC)
    monkeypatch.setattr(module, "_now", lambda: begun + timedelta(seconds=60))
    trajectory = art.Trajectory(start_time=begun)
    assert trajectory.finish() is trajectory
    ended = trajectory.end_time
    assert trajectory.metrics["duration"] == 60.0
    assert trajectory.finish().end_time is ended


def test_a_duration_that_the_rollout_measured_itself_stays():
    trajectory = art.Trajectory(metrics={"duration": 12.5}).finish()
    assert trajectory.metrics == {"duration": 12.5}
    assert trajectory.end_time is not None


def test_a_clock_that_was_set_back_gives_no_negative_duration():
    trajectory = art.Trajectory(start_time=datetime.now(UTC) + timedelta(hours=1))
    assert trajectory.finish().metrics["duration"] == 0.0


def test_a_failure_tells_what_was_raised_and_where():
    try:
        raise KeyError("scenario")
    except KeyError as error:
        failure = RolloutFailure.of(error)
    assert (failure.reason, failure.type, failure.message) == ("raised", "KeyError", "'scenario'")
    assert "test_a_failure_tells_what_was_raised_and_where" in failure.traceback
    assert str(failure) == "KeyError: 'scenario'"
    assert str(RolloutFailure.of(ValueError())) == "ValueError"
    assert RolloutFailure.of(ValueError(), "bad_reward").reason == "bad_reward"


async def rollout(reward):
    return art.Trajectory(reward=reward)


async def test_a_group_holds_what_is_done_and_what_is_still_to_run():
    group = art.TrajectoryGroup(
        [art.Trajectory(reward=1.0), rollout(2.0)],
        exceptions=[ValueError("no"), RolloutFailure(reason="timeout", type="T", message="late")],
        metadata={"scenario_id": "a"},
        metrics={"judged": True},
        logs=("line",),
    )
    assert (group.rewards, len(group), len(group.pending)) == ([1.0], 1, 1)
    assert [f.message for f in group.failures] == ["no", "late"]
    finished = await group
    assert (finished.rewards, finished.pending) == ([1.0, 2.0], ())
    assert (finished.metadata, finished.metrics) == ({"scenario_id": "a"}, {"judged": True})
    assert finished.logs == ["line"]
    assert len(finished.failures) == 2
    assert [t.reward for t in finished] == [1.0, 2.0]


def test_a_group_is_frozen_and_copies_what_it_is_given():
    metadata = {"scenario_id": "a"}
    group = art.TrajectoryGroup(metadata=metadata)
    metadata["scenario_id"] = "b"
    assert group.metadata == {"scenario_id": "a"}
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        group.metadata = {}


def test_every_group_has_an_id_of_its_own():
    first, second = art.TrajectoryGroup(), art.TrajectoryGroup()
    assert first.id != second.id
    assert first.with_results([]).id not in (first.id, second.id)


def test_a_finished_group_pickles():
    group = art.TrajectoryGroup([art.Trajectory(reward=1.0)], exceptions=[ValueError("no")])
    copy = pickle.loads(pickle.dumps(group))
    assert (copy.rewards, copy.failures, copy.id) == ([1.0], group.failures, group.id)


@pytest.mark.parametrize("odd", [3, "trajectory", rollout, None])
def test_a_group_refuses_what_is_no_attempt_by_its_type(odd):
    with pytest.raises(ConfigError, match=f"not {type(odd).__name__}"):
        art.TrajectoryGroup([art.Trajectory(), odd])
