"""Tasks in real containers, where Docker or Podman runs them, and engines that fail."""

import asyncio
import subprocess

import pytest

import art_core as art
from art_core.testing.scripts import Actor, Stage, in_turn
from art_harbor import HarborEnvironment, harbor_scenarios

BASE = "localhost/art-harbor-test-base"


@pytest.fixture
def scenarios(tasks):
    for file in tasks.rglob("Dockerfile"):
        file.write_text(file.read_text().replace("ubuntu:24.04", BASE))
    return harbor_scenarios(tasks)


async def attempt(program, scenario, *turns, **options):
    rollout = art.rollout_of(lambda: HarborEnvironment(sandbox=program, network=False, **options))
    return await rollout(Actor(Stage(in_turn(turns))), scenario)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_the_solutions_solve_their_tasks_in_containers(engine, scenarios):
    for scenario in scenarios:
        solved = await attempt(engine, scenario, *scenario["answer"])
        missed = await attempt(engine, scenario, "I can't.")
        assert (solved.reward, missed.reward) == (1.0, 0.0)
    listed = [engine, "ps", "--all", "--quiet", "--filter", "name=art-harbor-"]
    left = await asyncio.to_thread(subprocess.run, listed, check=True, capture_output=True)
    assert left.stdout == b""


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_command_in_a_container_is_ended_after_its_time(engine, scenarios):
    call = {"name": "bash", "arguments": '{"command": "echo begun; sleep 60"}'}
    turn = {"tool_calls": [{"id": "1", "type": "function", "function": call}]}
    found = await attempt(engine, scenarios[0], turn, "Done.", command_seconds=1.0)
    assert found.messages()[2]["content"] == "begun\n\n[killed after 1 s]"


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("echo no daemon >&2; exit 1", "docker build failed: no daemon"),
        ("case $1 in run) echo no room >&2; exit 125;; esac", "docker run failed: no room"),
        (
            "case $1 in exec) echo it is gone >&2; exit 1;; esac",
            "docker exec failed: it is gone",
        ),
        ("case $1 in cp) echo no space >&2; exit 1;; esac", "docker cp failed: no space"),
    ],
)
async def test_an_engine_that_fails_is_an_infrastructure_failure(
    tmp_path, scenarios, script, problem
):
    program = tmp_path / "docker"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o700)
    with pytest.raises(art.InfrastructureError, match=problem):
        await attempt(str(program), scenarios[0], "Done.")


async def test_a_program_that_is_not_there_or_does_not_start_is_named(tmp_path, scenarios):
    with pytest.raises(art.ConfigError, match="no-such-engine is not installed here"):
        await attempt("no-such-engine", scenarios[0], "Done.")
    program = tmp_path / "podman"
    program.write_text("not a program")
    program.chmod(0o700)
    with pytest.raises(art.InfrastructureError, match="podman image failed"):
        await attempt(str(program), scenarios[0], "Done.")
