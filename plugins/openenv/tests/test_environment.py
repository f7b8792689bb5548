"""Environments of real OpenEnv servers, through OpenEnv's client."""

import asyncio
from typing import Any

import pytest
from openenv.core.env_server.http_server import create_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, Observation, State
from pydantic import Field

import art_core as art
from art_core.rl.batch import training_batch
from art_core.rl.config import TrainConfig
from art_core.testing.echo import EchoBackend
from art_core.testing.scripts import Actor, Stage, in_turn
from art_openenv import OpenEnvEnvironment, from_training_trace, to_training_trace


def actor(*turns):
    return Actor(Stage(in_turn(turns)))


async def trained(url, replies, tmp_path):
    backend = EchoBackend(reply=lambda messages, step: next(replies))
    model = art.TrainableModel(
        name="m", project="p", base_model="echo-base", base_path=tmp_path, sinks=[]
    )
    await model.register(backend)
    rollout = art.rollout_of(lambda: OpenEnvEnvironment(url, max_turns=1))
    (group,) = await art.gather_trajectory_groups(
        [art.TrajectoryGroup(rollout(model, {"id": "0"}) for _ in range(2))],
        pbar_desc=None,
        max_concurrent=1,
    )
    result = await model.train([group])
    await model.close()
    await backend.close()
    return group, result


async def test_the_example_of_openenv_trains_a_step(echo_app, served, tmp_path):
    group, result = await trained(served(echo_app), iter(["four", "eight..."]), tmp_path)
    assert group.rewards == [pytest.approx(0.4), pytest.approx(0.8)]
    first = group.trajectories[0]
    assert "ready!" in first.messages()[0]["content"]
    assert first.metadata["openenv_step_count"] == 1
    assert result.step == 1


async def test_a_trace_is_written_and_read_without_a_change_of_tokens(echo_app, served, tmp_path):
    group, _ = await trained(served(echo_app), iter(["four", "eight..."]), tmp_path)
    traces = [to_training_trace(each) for each in group]
    turn = traces[0].turns[0]
    assert bytes(turn.completion_token_ids) == b"four\n"
    assert sum(turn.loss_mask) == 5
    again = [
        from_training_trace(type(trace)(**trace.model_dump()), each.reward)
        for trace, each in zip(traces, group, strict=True)
    ]
    options = TrainConfig.of({})
    before = training_batch([group], options).sequences
    after = training_batch([art.TrajectoryGroup(again)], options).sequences
    assert [s.token_ids for s in after] == [s.token_ids for s in before]
    assert [s.advantage for s in after] == [s.advantage for s in before]


async def test_a_trace_needs_tokens_and_whole_turns(echo_app, served, tmp_path):
    spoken = art.Trajectory(
        messages_and_choices=[
            {"role": "user", "content": "a"},
            {"finish_reason": "stop", "message": {"role": "assistant", "content": "b"}},
        ]
    )
    with pytest.raises(art.ConfigError, match="1 turns of the trajectory have no token ids"):
        to_training_trace(spoken)
    group, _ = await trained(served(echo_app), iter(["four", "eight..."]), tmp_path)
    trace = to_training_trace(group.trajectories[0])
    trace.turns[0].loss_mask[-1] = 0
    with pytest.raises(art.ConfigError, match="trains a part of its tokens"):
        from_training_trace(trace, 1.0)
    trace.turns[0].loss_mask[:] = [0] * len(trace.turns[0].loss_mask)
    with pytest.raises(art.ConfigError, match="no turn to train on"):
        from_training_trace(trace, 1.0)


class Move(Action):
    """A move on a line."""

    to: int = Field(..., ge=0)
    fast: bool = Field(...)


class Place(Observation):
    at: int = 0


class Line(Environment):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self):
        self.at = 0

    def reset(self, seed=None, episode_id=None, **kwargs: Any):
        self.at = seed or 0
        return Place(at=self.at, done=False, reward=0.0)

    def step(self, action: Move, **kwargs: Any):
        if action.to == 13:
            raise OSError("the line is cut")
        if action.to == 17:
            import time

            time.sleep(0.6)
        self.at = action.to
        return Place(at=self.at, done=self.at == 7, reward=0.5)

    @property
    def state(self):
        return State(episode_id="e", step_count=1)


@pytest.fixture
def line(served):
    return served(create_app(Line, Move, Place, env_name="line", max_concurrent_envs=8))


def moving(to, fast=True):
    function = {"name": "act", "arguments": f'{{"to": {to}, "fast": {str(fast).lower()}}}'}
    return {"content": None, "tool_calls": [{"id": "1", "type": "function", "function": function}]}


async def test_an_action_of_several_fields_is_a_tool(line):
    rollout = art.rollout_of(lambda: OpenEnvEnvironment(line, instructions="Go to 7."))
    turns = actor(moving(-1), moving(3), moving(7))
    found = await rollout(turns, {"id": "a", "reset": {"seed": 2}})
    assert found.messages()[0]["content"] == 'Go to 7.\n\n{"at": 2}'
    assert found.tools[0]["function"]["name"] == "act"
    answers = [m["content"] for m in found.messages() if m["role"] == "tool"]
    assert "VALIDATION_ERROR" in answers[0]
    assert answers[1] == '{"at": 3}'
    assert (found.reward, found.metrics["unfinished"]) == (1.0, 0.0)


async def test_a_function_makes_actions_of_messages(line):
    def action(message):
        return {"to": int(message["content"]), "fast": True} if message["content"] else None

    rollout = art.rollout_of(
        lambda: OpenEnvEnvironment(line, action=action, observation=lambda o: f"at {o['at']}")
    )
    found = await rollout(actor("4", ""), None)
    assert [m["content"] for m in found.messages()] == ["at 0", "4", "at 4", ""]
    assert found.reward == 0.5


@pytest.mark.parametrize(
    ("to", "timeout", "problem"),
    [(13, 20.0, "failed .*the line is cut"), (17, 0.2, "gave no answer")],
)
async def test_a_step_that_fails_or_hangs_is_an_infrastructure_failure(line, to, timeout, problem):
    environment = OpenEnvEnvironment(line)
    await environment.reset(None)
    environment._client._message_timeout = timeout
    with pytest.raises(art.InfrastructureError, match=problem):
        await environment.respond(moving(to))
    await environment.close()


async def test_a_server_that_is_down_is_one_too():
    environment = OpenEnvEnvironment("http://127.0.0.1:9", timeout=5)
    with pytest.raises(
        art.InfrastructureError, match="the OpenEnv server http://127.0.0.1:9 failed"
    ):
        await environment.reset(None)
    await environment.close()


async def test_attempts_at_the_same_time_have_sessions_of_their_own(line):
    rollout = art.rollout_of(lambda: OpenEnvEnvironment(line))
    found = await asyncio.gather(*(rollout(actor(moving(n), moving(7)), None) for n in range(1, 4)))
    seen = [each.messages()[2]["content"] for each in found]
    assert seen == [f'{{"at": {n}}}' for n in range(1, 4)]
