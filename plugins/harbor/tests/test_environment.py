"""Tasks in the sandbox without an image: the contract, a trained step, and what fails."""

import json
from pathlib import Path
from typing import ClassVar

import pytest

import art_core as art
from art_core.testing.echo import EchoBackend
from art_core.testing.environment import EnvironmentContract
from art_core.testing.scripts import Actor, Stage, in_turn
from art_harbor import HarborEnvironment, harbor_scenarios

pytestmark = pytest.mark.usefixtures("namespaces")
TASKS = Path(__file__).parent / "tasks"


def command(text):
    function = {"name": "bash", "arguments": json.dumps({"command": text})}
    call = {"id": "call_1", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def no_daemon(folder):
    """Return a program that fails as Docker does without its daemon."""
    program = folder / "docker"
    program.write_text("#!/bin/sh\necho no daemon >&2\nexit 1\n")
    program.chmod(0o700)
    return str(program)


@pytest.mark.slow  # it plays a hundred attempts, each in a sandbox of its own
class TestContract(EnvironmentContract):
    scenarios: ClassVar = harbor_scenarios(TASKS)

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        self.folder = tmp_path

    def environment(self):
        return HarborEnvironment(sandbox="subprocess", max_turns=3)

    def broken_environment(self):
        return HarborEnvironment(sandbox=no_daemon(self.folder))


async def attempt(path, *turns, **options):
    rollout = art.rollout_of(lambda: HarborEnvironment(sandbox="subprocess", **options))
    return await rollout(Actor(Stage(in_turn(turns))), str(path))


def answers(trajectory):
    return [m["content"] for m in trajectory.messages() if m["role"] == "tool"]


def write_tests(task, script):
    (task / "tests" / "test.sh").write_text(f"#!/bin/bash\n{script}\n")


async def test_files_stay_between_commands_and_attempts_share_none(tasks):
    path = tasks / "greeting"
    found = await attempt(path, command("pwd; echo hello > greeting.txt"), command("ls"), "Done.")
    assert answers(found) == ["/app\n\n[exit 0]", "greeting.txt\n\n[exit 0]"]
    assert (found.reward, found.metrics["turns"]) == (1.0, 3)
    again = await attempt(path, command("ls"), "Done.", instructions="Be brief.")
    assert answers(again) == ["[exit 0]"]
    assert again.messages()[0] == {"role": "system", "content": "Be brief."}
    assert again.reward == 0.0


async def test_a_command_sees_only_its_machine_and_changes_no_program(tasks):
    looks = f"ls /; cat {tasks}/greeting/solution/solve.sh; touch /usr/bin/x; exit 3"
    found = await attempt(tasks / "greeting", command(looks), "Done.")
    (shown,) = answers(found)
    assert shown.startswith("app\nbin\ndev\n")
    assert "No such file or directory" in shown and "Read-only file system" in shown
    assert shown.endswith("[exit 3]")
    assert "home" not in shown.split("cat:")[0]


async def test_the_dockerfile_is_followed(tasks):
    found = await attempt(tasks / "total", command('cat *.txt; echo "$LC_ALL $LINES"'), "Done.")
    assert answers(found) == ["1\n2\n3\n3\n4\n5\nC 3\n\n[exit 0]"]
    assert found.reward == 0.0
    assert found.metrics["lines"] == 0.0  # the other reward of the tests


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("RUN apt-get install -y gcc && false", "fails without its image"),
        ("COPY --from=other /a /b", "needs an image"),
        ("USER agent", "needs an image"),
    ],
)
async def test_a_dockerfile_that_needs_its_image_is_an_error(tasks, line, problem):
    (tasks / "greeting" / "environment" / "Dockerfile").write_text(f"FROM ubuntu\n{line}\n")
    with pytest.raises(art.ArtError, match=problem):
        await attempt(tasks / "greeting", "Done.")


async def test_a_user_needs_an_image(tasks):
    file = tasks / "greeting" / "task.toml"
    file.write_text(file.read_text().replace("[agent]", '[agent]\nuser = "agent"'))
    with pytest.raises(art.ConfigError, match="there is only root"):
        await attempt(tasks / "greeting", "Done.")


async def test_a_command_and_an_attempt_that_take_too_long_are_ended(tasks):
    path = tasks / "greeting"
    found = await attempt(path, command("sleep 60"), "Done.", command_seconds=0.3)
    assert answers(found) == ["[killed after 0 s]"]
    file = path / "task.toml"
    file.write_text(
        file.read_text().replace("[agent]\ntimeout_sec = 900.0", "[agent]\ntimeout_sec = 1")
    )
    found = await attempt(path, command("echo hello > greeting.txt; sleep 60"), "never said")
    assert (found.metrics["turns"], found.reward) == (1, 1.0)


async def test_a_long_output_is_shortened(tasks):
    found = await attempt(tasks / "greeting", command("seq 9000"), "Done.")
    (shown,) = answers(found)
    assert "characters left out" in shown
    assert len(shown) < 11_000


@pytest.mark.parametrize(
    ("script", "reward"),
    [
        ("echo 0.25 > /logs/verifier/reward.txt", 0.25),
        ("echo '{\"reward\": 0.5}' > /logs/verifier/reward.json", 0.5),
        ("echo 0.5 > /logs/verifier/reward.json", 0.5),
        ("echo '{\"score\": 2}' > /logs/verifier/reward.json", 2.0),
        ("echo 1 > /logs/verifier/reward.txt; exit 1", 1.0),
    ],
)
async def test_the_tests_give_the_reward(tasks, script, reward):
    write_tests(tasks / "greeting", script)
    assert (await attempt(tasks / "greeting", "Done.")).reward == reward


async def test_what_the_agent_wrote_is_no_reward_and_no_test(tasks):
    forged = "echo 1 > /logs/verifier/reward.txt; mkdir /tests; echo > /tests/test.sh"
    found = await attempt(tasks / "greeting", command(forged), "Done.")
    assert found.reward == 0.0


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        (
            "echo the checker is missing; exit 1",
            r"wrote no reward \(exit 1\): the checker is missing",
        ),
        (
            "echo nan > /logs/verifier/reward.txt",
            "wrote no reward into reward.txt: no finite number",
        ),
        (
            "echo yes > /logs/verifier/reward.txt",
            "wrote no reward into reward.txt: could not convert",
        ),
        ("ln -s /etc/passwd /logs/verifier/reward.txt", "leads elsewhere"),
    ],
)
async def test_tests_without_a_reward_are_an_infrastructure_failure(tasks, script, problem):
    write_tests(tasks / "greeting", script)
    with pytest.raises(art.InfrastructureError, match=problem):
        await attempt(tasks / "greeting", "Done.")


async def test_several_rewards_need_a_name(tasks):
    write_tests(tasks / "greeting", 'echo \'{"a": 1, "b": 2}\' > /logs/verifier/reward.json')
    with pytest.raises(art.ConfigError, match="none is named 'reward': a, b"):
        await attempt(tasks / "greeting", "Done.")
    found = await attempt(tasks / "greeting", "Done.", reward="b")
    assert (found.reward, found.metrics["a"]) == (2.0, 1.0)


async def test_tests_that_take_too_long_are_a_wrong_answer(tasks):
    write_tests(tasks / "greeting", "sleep 60")
    file = tasks / "greeting" / "task.toml"
    file.write_text(
        file.read_text().replace("[verifier]\ntimeout_sec = 900.0", "[verifier]\ntimeout_sec = 1")
    )
    found = await attempt(tasks / "greeting", "Done.")
    assert (found.reward, found.metrics["tests_timed_out"]) == (0.0, 1.0)


@pytest.mark.parametrize("scenario", ["", {"task": "x"}, 3])
async def test_a_scenario_names_a_directory(scenario):
    environment = HarborEnvironment(sandbox="subprocess")
    with pytest.raises(art.ConfigError, match="names no task directory"):
        await environment.reset(scenario)


async def test_a_step_is_trained_on_two_attempts(tasks, tmp_path):
    turns = iter([command("echo hello > greeting.txt"), "Done.", "I can't."])
    backend = EchoBackend(reply=lambda messages, step: next(turns))
    model = art.TrainableModel(
        name="m", project="p", base_model="echo-base", base_path=tmp_path, sinks=[]
    )
    await model.register(backend)
    rollout = art.rollout_of(lambda: HarborEnvironment(sandbox="subprocess"))
    scenario = harbor_scenarios(tasks)[0]
    (group,) = await art.gather_trajectory_groups(
        [art.TrajectoryGroup(rollout(model, scenario) for _ in range(2))],
        pbar_desc=None,
        max_concurrent=1,
    )
    assert group.rewards == [1.0, 0.0]
    assert (await model.train([group])).step == 1
    await model.close()
    await backend.close()
