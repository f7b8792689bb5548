"""Rollouts of environments of the real verifiers package, unmodified."""

import pytest

import art_core as art
from art_core.rl.batch import training_batch
from art_core.rl.config import TrainConfig
from art_core.testing.echo import EchoBackend
from art_verifiers import verifiers_rollout, verifiers_scenarios


@pytest.fixture
async def registered(tmp_path):
    """Return a model of the echo, by its replies."""
    made = []

    async def make(reply):
        backend = EchoBackend(reply=reply)
        model = art.TrainableModel(
            name="m", project="p", base_model="echo-base", base_path=tmp_path, sinks=[]
        )
        await model.register(backend)
        made.extend([model, backend])
        return model

    yield make
    for each in made:
        await each.close()


async def gathered(name, model, kind, repeats=2):
    rollout = verifiers_rollout(name, kind=kind)
    scenario = verifiers_scenarios(name, kind=kind)[0]
    group = art.TrajectoryGroup(rollout(model, scenario) for _ in range(repeats))
    (group,) = await art.gather_trajectory_groups([group], pbar_desc=None)
    return group


async def test_an_environment_of_one_turn_trains_a_step_on_the_tokens_that_were_sampled(
    install, registered
):
    turns = iter(["5", "6"])
    model = await registered(lambda messages, step: next(turns))
    group = await gathered(install("sums-env"), model, "single")
    assert sorted(group.rewards) == [0.0, 1.0]
    trajectory = group.trajectories[0]
    assert [m["content"] for m in trajectory.messages()[:2]] == [
        "Answer with a number.",
        "What is 2 + 3?",
    ]
    assert trajectory.metrics["right"] == trajectory.reward
    assert trajectory.metrics["length"] == 1.0
    assert trajectory.metadata["stop_condition"] == "max_turns_reached"
    batch = training_batch([group], TrainConfig.of({}))
    assert len(batch.sequences) == 2
    assert (await model.train([group])).step == 1


async def test_a_conversation_of_several_turns_is_one_history(install, registered):
    turns = iter(["4", "5"])
    model = await registered(lambda messages, step: next(turns))
    group = await gathered(install("sums-env"), model, "retry", repeats=1)
    (trajectory,) = group.trajectories
    assert trajectory.reward == 1.0
    contents = [m["content"] for m in trajectory.messages()[2:]]
    assert contents == ["4", "Try again.", "5"]
    assert trajectory.additional_histories == []


async def test_tools_are_recorded_with_their_calls(install, registered):
    def reply(messages, step):
        if messages[-1]["role"] == "tool":
            return messages[-1]["content"]
        function = {"name": "add", "arguments": '{"a": 2, "b": 3}'}
        return {
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": function}],
        }

    model = await registered(reply)
    group = await gathered(install("sums-env"), model, "tools", repeats=1)
    (trajectory,) = group.trajectories
    assert trajectory.reward == 1.0
    assert trajectory.tools[0]["function"]["name"] == "add"
    assert [m["role"] for m in trajectory.messages()[2:]] == ["assistant", "tool", "assistant"]
    assert trajectory.metrics["add_calls"] == 1.0


@pytest.mark.parametrize(
    ("kind", "problem"),
    [("down", "no sandbox"), ("failing", "the rubric failed: .*the judge is down")],
)
async def test_what_fails_beside_the_model_is_an_infrastructure_failure(
    install, registered, kind, problem
):
    model = await registered(lambda messages, step: "5")
    name = install("sums-env")
    scenario = verifiers_scenarios(name, kind=kind)[0]
    with pytest.raises(art.InfrastructureError, match=problem):
        await verifiers_rollout(name, kind=kind)(model, scenario)


async def test_an_empty_answer_is_a_wrong_answer(install, registered):
    model = await registered(lambda messages, step: "")
    group = await gathered(install("sums-env"), model, "single", repeats=1)
    assert group.rewards == [0.0]


def test_a_rubric_of_whole_groups_is_refused(install):
    with pytest.raises(art.ConfigError, match="scores whole groups"):
        verifiers_rollout(install("sums-env"), kind="grouped")


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("import no_such_module", "can't be loaded: ModuleNotFoundError: .*no_such_module"),
        ("x = 1", "can't be loaded: .*does not expose load_environment"),
        ("raise SystemExit('no licence')", "can't be loaded: SystemExit: no licence"),
    ],
)
def test_an_environment_that_can_not_be_loaded_is_named(install, code, problem):
    with pytest.raises(art.ConfigError, match=f"'broken-env' {problem}"):
        verifiers_rollout(install("broken-env", code))


def test_another_object_is_no_environment():
    with pytest.raises(art.ConfigError, match="3 is not an environment of verifiers"):
        verifiers_scenarios(3)


def test_scenarios_are_the_rows_of_the_dataset(install):
    first, second = verifiers_scenarios(install("sums-env"), split="eval")
    assert (first["id"], second["answer"]) == ("0", "8")
    assert len(verifiers_scenarios("sums-env", n=1, seed=3)) == 1
