"""Task directories, as `harbor tasks init` makes them, read and checked."""

import re

import pytest

import art_core as art
from art_harbor import HarborTask, harbor_scenarios
from art_harbor.task import resolved


def test_a_task_is_read(tasks):
    task = HarborTask.read(tasks / "total")
    assert task.instruction.startswith("The file numbers.txt")  # the mark before it is left out
    assert (task.name, task.separate, task.agent_seconds) == ("total", True, 900.0)
    assert not HarborTask.read(tasks / "greeting").separate


def test_the_settings_of_a_task_are_read(tasks):
    (tasks / "greeting" / "task.toml").write_text(
        'artifacts = ["/app/out", {source = "/var/log"}]\n'
        "[environment]\n"
        'docker_image = "python:3.12"\nmemory = "2G"\ncpus = 2\nworkdir = "/src"\n'
        'network_mode = "no-network"\nenv = {KEY = "${HARBOR_TEST_KEY:-none}"}\n'
        '[agent]\nuser = 1000\n[verifier]\nenvironment = {docker_image = "tests:1"}\n'
    )
    task = HarborTask.read(tasks / "greeting")
    assert (task.image, task.verifier_image, task.separate) == ("python:3.12", "tests:1", True)
    assert (task.memory_mb, task.cpus, task.workdir, task.network) == (2048, 2.0, "/src", False)
    assert task.artifacts == ("/logs/artifacts", "/app/out", "/var/log")
    assert (task.agent_user, task.verifier_user) == ("1000", "")
    assert resolved(task.env) == {"KEY": "none"}


def test_a_variable_that_is_not_set_is_named(monkeypatch):
    monkeypatch.setenv("HARBOR_TEST_KEY", "a key")
    assert resolved({"A": "x ${HARBOR_TEST_KEY}"}) == {"A": "x a key"}
    monkeypatch.delenv("HARBOR_TEST_KEY")
    with pytest.raises(art.ConfigError, match="needs the environment variable HARBOR_TEST_KEY"):
        resolved({"A": "${HARBOR_TEST_KEY}"})


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ('[[steps]]\nname = "one"', "needs several steps"),
        ('[environment]\nos = "windows"', "needs Windows"),
        ("[environment]\ngpus = 1", "needs GPUs"),
        ('[agent]\nnetwork_mode = "allowlist"', "needs a list of allowed hosts"),
        ('artifacts = ["../key"]', "is no absolute path"),
        ("[environment", "can't be read"),
        ("environment = 3", "can't be read"),
        ("artifacts = [{}]", "can't be read"),
    ],
)
def test_what_can_not_be_given_is_refused(tasks, more, problem):
    (tasks / "greeting" / "task.toml").write_text(more)
    with pytest.raises(art.ConfigError, match=problem):
        HarborTask.read(tasks / "greeting")


def test_a_task_needs_its_files(tasks):
    (tasks / "greeting" / "environment" / "docker-compose.yaml").touch()
    with pytest.raises(art.ConfigError, match="needs several containers"):
        harbor_scenarios(tasks)
    (tasks / "greeting" / "environment" / "docker-compose.yaml").unlink()
    (tasks / "greeting" / "tests" / "test.sh").unlink()
    with pytest.raises(art.ConfigError, match=re.escape("no tests/test.sh")):
        harbor_scenarios(tasks)
    (tasks / "greeting" / "instruction.md").unlink()
    with pytest.raises(art.ConfigError, match=re.escape("instruction.md")):
        harbor_scenarios(tasks / "greeting")
    with pytest.raises(art.ConfigError, match="there is no task directory"):
        harbor_scenarios(tasks / "total" / "tests")


def test_a_task_without_a_solution_has_no_right_turns(tasks):
    (tasks / "greeting" / "solution" / "solve.sh").unlink()
    greeting, total = harbor_scenarios(tasks)
    assert "answer" not in greeting
    assert [turn["role"] for turn in total["answer"]] == ["assistant", "assistant"]
