"""Trajectories and groups in the forms that scripts use."""

from __future__ import annotations

import copy
import json

import pydantic
import pytest
from openai.types.chat.chat_completion import Choice

import art
import art_core

ASKED = {"role": "user", "content": "Is water wet?"}
CHOICE = Choice.model_validate(
    {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": "yes"},
        "logprobs": {
            "content": [{"token": "yes", "logprob": -0.5, "top_logprobs": [], "bytes": None}]
        },
    }
)


def test_messages_and_choices_become_messages_with_a_content():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    trajectory = art.Trajectory(
        messages_and_choices=[ASKED, CHOICE, {"role": "assistant", "tool_calls": [call]}]
    )
    assert trajectory.messages() == [
        ASKED,
        {"role": "assistant", "content": "yes"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]


def test_a_trajectory_dumps_what_art_dumps():
    trajectory = art.Trajectory(
        messages_and_choices=[ASKED, CHOICE], reward=1, metadata={"id": "a"}, metrics={"acc": 0.5}
    )
    dumped = trajectory.model_dump()
    assert dumped.keys() == {
        "messages_and_choices", "tools", "additional_histories", "reward", "metrics", "metadata",
        "logs", "initial_policy_version", "final_policy_version",
    }  # fmt: skip
    assert dumped["messages_and_choices"][1]["message"]["content"] == "yes"
    assert json.loads(trajectory.model_dump_json()) == dumped
    assert art.Trajectory.model_validate(dumped).model_dump() == dumped
    assert trajectory.model_dump(include={"reward"}) == {"reward": 1}
    assert "logs" not in trajectory.model_dump(exclude={"logs"})
    assert str(trajectory) == "Trajectory(reward=1, metrics={'acc': 0.5}, metadata={'id': 'a'})"


def test_a_copy_takes_other_values():
    first = art.Trajectory(messages_and_choices=[ASKED], reward=1.0)
    second = first.model_copy(update={"reward": 0.0}, deep=True)
    second.messages_and_choices.append(CHOICE)
    assert (first.reward, second.reward) == (1.0, 0.0)
    assert len(first.messages_and_choices) == 1


def test_a_subclass_declares_fields_as_a_pydantic_model_does():
    class Answered(art.Trajectory):
        answer: str | None = None
        sources: list[str] = []  # noqa: RUF012  as users of Pydantic write it
        turns: int = pydantic.Field(default=3)
        seen: set[str] = pydantic.Field(default_factory=set)

    first, second = Answered(answer="yes", reward=1.0), Answered()
    first.sources.append("a")
    assert (first.answer, first.reward, first.turns, first.seen) == ("yes", 1.0, 3, set())
    assert second.sources == []
    assert first.model_dump()["sources"] == ["a"]
    assert isinstance(first, art.Trajectory)
    assert isinstance(first, art_core.Trajectory)


def test_a_pydantic_model_has_a_trajectory_in_it():
    class Scored(pydantic.BaseModel):
        trajectory: art.Trajectory

    scored = Scored(trajectory=art.Trajectory(reward=0.5))
    assert scored.model_dump()["trajectory"]["reward"] == 0.5
    assert Scored(trajectory={"reward": 0.25}).trajectory.reward == 0.25


async def test_a_duration_is_tracked_with_and_without_async():
    trajectory = art.Trajectory()
    async with trajectory.track_duration("search"):
        pass
    with trajectory.track_duration("search"):
        pass
    assert trajectory.metrics["search_duration"] >= 0
    assert trajectory.finish() is trajectory
    assert trajectory.metrics["duration"] >= 0


def test_a_trajectory_for_the_log_marks_its_choices():
    trajectory = art.Trajectory(messages_and_choices=[ASKED, CHOICE])
    trajectory.log("done")
    shown = trajectory.for_logging()
    assert [message["trainable"] for message in shown["messages"]] == [False, True]
    assert shown["logs"] == ["done"]


def test_a_group_has_exceptions_and_takes_changes():
    group = art.TrajectoryGroup(
        [art.Trajectory(reward=1.0), ValueError("late")], metrics={"size": 2}, metadata={"id": "a"}
    )
    group.log("both ran")
    group.trajectories.append(art.Trajectory(reward=0.0))
    group.metadata = {"id": "b"}
    (exception,) = group.exceptions
    assert (exception.type, exception.message) == ("ValueError", "late")
    assert [t.reward for t in group] == [1.0, 0.0]
    assert len(group) == 2
    assert group.logs == ["both ran"]
    for copied in (copy.deepcopy(group), group.model_copy()):
        assert (copied.rewards, copied.metadata, copied.metrics) == (
            [1.0, 0.0],
            {"id": "b"},
            {"size": 2},
        )
        assert len(copied.exceptions) == 1
    assert group.model_dump()["exceptions"][0]["type"] == "ValueError"


async def test_an_awaited_group_is_one_of_these():
    async def rollout():
        return art.Trajectory(reward=1.0)

    group = await art.TrajectoryGroup(rollout() for _ in range(2))
    assert isinstance(group, art.TrajectoryGroup)
    assert group.rewards == [1.0, 1.0]


async def test_a_yielded_trajectory_is_captured():
    async def deep():
        art.yield_trajectory(art.Trajectory(reward=0.5))

    assert (await art.capture_yielded_trajectory(deep())).reward == 0.5
    with pytest.raises(RuntimeError, match="yielded no trajectory"):
        await art.capture_yielded_trajectory(_nothing())


async def _nothing():
    pass
