"""Environments: what a rollout of one does, turn by turn, and when something fails."""

import functools

import pytest

import art_core as art
from art_core.environments.environment import makes_environments
from art_core.rl.batch import training_batch
from art_core.rl.config import TrainConfig
from art_core.testing.echo import EchoBackend
from art_core.testing.scripts import Actor, Stage, always, in_turn


class Guess(art.Environment):
    """A number that the model guesses."""

    max_turns = 3
    closed = 0

    async def reset(self, scenario):
        self.secret, self.found = scenario["secret"], False
        return [{"role": "user", "content": "Guess."}]

    async def respond(self, message):
        self.found = message["content"] == self.secret
        return None if self.found else [{"role": "user", "content": "No."}]

    async def score(self, trajectory):
        return await art.reward(trajectory, {"found": self.found})

    async def close(self):
        type(self).closed += 1


SCENARIO = {"id": "a", "secret": "7"}


def actor(*turns):
    return Actor(Stage(in_turn(turns)))


async def test_a_rollout_plays_until_the_environment_ends_it():
    trajectory = await art.rollout_of(Guess)(actor("1", "7"), SCENARIO)
    assert [m["content"] for m in trajectory.messages()] == ["Guess.", "1", "No.", "7"]
    assert (trajectory.reward, trajectory.tools) == (1.0, None)
    assert trajectory.metrics == {"turns": 2, "unfinished": 0.0, "found": 1.0}


@pytest.mark.parametrize(("max_turns", "turns"), [(None, 3), (1, 1)])
async def test_an_attempt_ends_after_max_turns(max_turns, turns):
    trajectory = await art.rollout_of(Guess, max_turns=max_turns)(actor("1"), SCENARIO)
    assert (trajectory.reward, trajectory.metrics["turns"]) == (0.0, turns)
    assert trajectory.metrics["unfinished"] == 1.0


async def test_each_attempt_has_an_environment_of_its_own_and_closes_it():
    before = Guess.closed
    rollout = art.rollout_of(Guess)
    scenarios = [SCENARIO, {"id": "b", "secret": "1"}]
    (group,) = await art.gather_trajectory_groups(
        [art.TrajectoryGroup(rollout(actor("1", "7"), each) for each in scenarios)], pbar_desc=None
    )
    assert group.rewards == [1.0, 1.0]
    assert Guess.closed - before == 2


async def test_a_rollout_of_a_trained_model_is_trained(tmp_path):
    backend = EchoBackend(reply=lambda messages, step: str(len(messages)))
    model = art.TrainableModel(
        name="m", project="p", base_model="echo-base", base_path=tmp_path, sinks=[]
    )
    await model.register(backend)
    rollout = art.rollout_of(Guess, options={"max_tokens": 50})
    scenarios = [{"id": "a", "secret": "3"}, {"id": "a", "secret": "9"}]
    (group,) = await art.gather_trajectory_groups(
        [art.TrajectoryGroup(rollout(model, each) for each in scenarios)], pbar_desc=None
    )
    assert group.rewards == [1.0, 0.0]
    batch = training_batch([group], TrainConfig.of({}))
    assert len(batch.sequences) > 0
    assert (await model.train([group])).step == 1
    await model.close()
    await backend.close()


class Tooled(Guess):
    """One with a tool."""

    def __init__(self):
        self.box = art.Toolbox([self.hint])

    async def reset(self, scenario):
        self.tools = self.box.schemas
        return await super().reset(scenario)

    def hint(self) -> str:
        """Return the number."""
        return self.secret

    async def respond(self, message):
        return await self.box.answers(message) or await super().respond(message)


async def test_tools_are_offered_in_every_request_and_kept_with_the_attempt(tmp_path):
    call = {"id": "x", "type": "function", "function": {"name": "hint", "arguments": "{}"}}
    turns = [{"content": None, "tool_calls": [call]}, "7"]
    backend = EchoBackend(reply=lambda messages, step: turns[len(messages) > 1])
    model = art.TrainableModel(
        name="m", project="p", base_model="echo-base", base_path=tmp_path, sinks=[]
    )
    await model.register(backend)
    trajectory = await art.rollout_of(Tooled)(model, SCENARIO)
    assert [m["role"] for m in trajectory.messages()] == ["user", "assistant", "tool", "assistant"]
    assert trajectory.messages()[2] == {
        "role": "tool",
        "tool_call_id": "x",
        "name": "hint",
        "content": "7",
    }
    assert trajectory.tools == art.Toolbox([Tooled().hint]).schemas
    assert trajectory.messages_and_choices[1].finish_reason == "tool_calls"
    assert trajectory.reward == 1.0
    cut = await art.rollout_of(Tooled, options={"max_tokens": 5})(model, SCENARIO)
    assert cut.messages_and_choices[1].finish_reason == "length"
    assert cut.messages()[1]["content"] == '[{"id'
    await model.close()
    await backend.close()


class TooLongError(Exception):
    code = "context_length_exceeded"


def failing_at(turn, error):
    def play(messages, number):
        if number == turn:
            raise error
        return "1"

    return Actor(Stage(play))


async def test_a_conversation_that_no_longer_fits_is_scored():
    trajectory = await art.rollout_of(Guess)(failing_at(1, TooLongError()), SCENARIO)
    assert trajectory.metrics == {"turns": 1, "unfinished": 1.0, "found": 0.0}


@pytest.mark.parametrize(("turn", "error"), [(0, TooLongError()), (1, ConnectionError())])
async def test_an_endpoint_that_fails_ends_the_rollout(turn, error):
    before = Guess.closed
    with pytest.raises(type(error)):
        await art.rollout_of(Guess)(failing_at(turn, error), SCENARIO)
    assert Guess.closed == before + 1


async def test_an_environment_that_fails_is_a_failure_and_not_a_reward():
    class Broken(Guess):
        async def respond(self, message):
            raise OSError("its server is down")

    (group,) = await art.gather_trajectory_groups(
        [
            art.TrajectoryGroup(
                art.rollout_of(make)(actor("7"), SCENARIO) for make in (Broken, Guess)
            )
        ],
        pbar_desc=None,
    )
    assert group.rewards == [1.0]
    assert str(group.failures[0]) == "OSError: its server is down"


async def test_an_attempt_is_kept_when_its_environment_can_not_be_closed(caplog):
    class Stuck(Guess):
        async def close(self):
            raise OSError("gone")

    trajectory = await art.rollout_of(Stuck)(actor("7"), SCENARIO)
    assert trajectory.reward == 1.0
    assert "could not be closed" in caplog.text


@pytest.mark.parametrize(
    "messages", ["Guess.", [], [{"content": "x"}], [{"role": "assistant", "content": "x"}], [3]]
)
async def test_messages_of_another_form_are_an_error(messages):
    class Odd(Guess):
        async def reset(self, scenario):
            return messages

    class OddLater(Guess):
        async def respond(self, message):
            return messages

    with pytest.raises(art.RolloutError, match="reset of Odd returned"):
        await art.rollout_of(Odd)(actor("7"), SCENARIO)
    with pytest.raises(art.RolloutError, match="respond of OddLater returned .* None ends the"):
        await art.rollout_of(OddLater)(actor("7"), SCENARIO)


@pytest.mark.parametrize("wrong", [Guess(), "Guess", int, lambda scenario: Guess(), 3])
def test_a_rollout_needs_something_that_makes_environments(wrong):
    assert not makes_environments(wrong)
    with pytest.raises(art.ConfigError, match="takes a class or a function that makes an"):
        art.rollout_of(wrong)


def test_classes_and_functions_without_parameters_make_environments():
    sized = functools.partial(lambda size, *more, **others: Guess(), 4)
    assert all(map(makes_environments, (Guess, lambda: Guess(), lambda size=4: Guess(), sized)))


def test_max_turns_is_a_count():
    with pytest.raises(art.ConfigError, match="max_turns must be at least 1, got 0"):
        art.rollout_of(Guess, max_turns=0)


async def test_a_function_that_makes_something_else_is_an_error():
    with pytest.raises(
        art.ConfigError, match="frozenset is no environment: it has no reset, respond"
    ):
        await art.rollout_of(lambda: frozenset("x"))(actor("7"), SCENARIO)


async def test_a_class_that_lacks_a_method_is_an_error():
    class Half(art.Environment):
        async def reset(self, scenario):
            return [{"role": "user", "content": "?"}]

    with pytest.raises(TypeError, match="abstract methods? '?respond"):
        await art.rollout_of(Half)(Actor(Stage(always("x"))), SCENARIO)
