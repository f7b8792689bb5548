"""Sandboxes: processes through the contract, containers by a stand-in for Docker, names."""

import json
import os
import sys
from typing import ClassVar

import pytest

import art_core as art
from art_core import rewards
from art_core.environments import processes
from art_core.environments.containers import ContainerSandbox
from art_core.environments.processes import SubprocessSandbox
from art_core.testing.sandbox import SandboxContract
from waiting import alive, until


class TestProcesses(SandboxContract):
    python: ClassVar = sys.executable

    @property
    def has_network(self):
        return not processes.namespaces()

    def sandbox(self):
        return SubprocessSandbox()

    def broken_sandbox(self):
        return SubprocessSandbox(folder="/no/such/directory")


class TestProcessesWithoutNamespaces(TestProcesses):
    @pytest.fixture(autouse=True)
    def _none(self, monkeypatch):
        monkeypatch.setattr(processes, "namespaces", lambda: False)


async def test_what_a_killed_command_started_is_killed(tmp_path):
    text = (
        "import os, subprocess, sys, time; "
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)']); "
        f"open({str(tmp_path / 'pid')!r}, 'w').write(os.readlink('/proc/self')); time.sleep(3600)"
    )
    found = await art.sandbox().run(
        [sys.executable, "-c", text], limits=art.SandboxLimits(seconds=1.0, cpu_seconds=5)
    )
    assert found.timed_out
    until(lambda: not alive(int((tmp_path / "pid").read_text())))


async def test_a_cancelled_run_kills_its_command():
    import asyncio

    running = asyncio.ensure_future(
        art.sandbox().run([sys.executable, "-c", "import time; time.sleep(3600)"])
    )
    await asyncio.sleep(0.05)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


def test_a_machine_without_namespaces_is_known(monkeypatch):
    processes.namespaces.cache_clear()
    monkeypatch.setattr(processes.shutil, "which", lambda name: None)
    assert not processes.namespaces()
    with pytest.raises(art.ConfigError, match="permits no new namespaces"):
        SubprocessSandbox(strict=True)
    processes.namespaces.cache_clear()


@pytest.mark.parametrize("limit", ["seconds", "memory_mb", "output_kb"])
def test_limits_are_above_zero(limit):
    with pytest.raises(art.ConfigError, match=f"the limit {limit} must be above 0, got 0"):
        art.SandboxLimits(**{limit: 0})


DOCKER = """#!{python}
import json, os, sys, time
with open({log!r}, "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
if sys.argv[1] == "rm":
    sys.exit(0)
volume = next(a for a in sys.argv if a.startswith("--volume=")).split("=")[1].split(":")[0]
command = sys.argv[sys.argv.index("timeout") + 4:]
if command[0] == "down":
    print("no daemon", file=sys.stderr)
    sys.exit(125)
if command[0] == "hang":
    time.sleep(0.2)
    sys.exit(137)
if command[0] == "big":
    sys.exit(137)
os.chdir(volume)
os.execvp(command[0], command)
"""


@pytest.fixture
def docker(tmp_path, monkeypatch):
    """Put a stand-in for Docker on the path, which runs commands here; return its log."""
    log, program = tmp_path / "log", tmp_path / "bin" / "docker"
    program.parent.mkdir()
    program.write_text(DOCKER.format(python=sys.executable, log=str(log)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return lambda: [json.loads(line) for line in log.read_text().splitlines()]


async def test_a_container_runs_a_command_and_is_removed(docker):
    limits = art.SandboxLimits(seconds=30, memory_mb=64, cpu_seconds=7)
    found = await art.sandbox("docker", image="small").run(
        ["cat", "a.txt"], files={"a.txt": "one"}, limits=limits, collect=["a.txt"]
    )
    assert (found.stdout, found.exit_status, found.files) == ("one", 0, {"a.txt": b"one"})
    run, removed = docker()
    assert run[-7:] == ["small", "timeout", "-s", "KILL", "30", "cat", "a.txt"]
    wanted = {"--rm", "--network=none", "--memory=64m", "--ulimit=cpu=7", "--cap-drop=ALL"}
    assert wanted <= set(run)
    assert removed[:2] == ["rm", "--force"]
    assert f"--name={removed[2]}" in run


@pytest.mark.parametrize(("command", "seconds", "status"), [("hang", 0.1, None), ("big", 60, 137)])
async def test_a_container_that_is_late_is_told_from_one_that_takes_too_much(
    docker, command, seconds, status
):
    limits = art.SandboxLimits(seconds=seconds, network=True)
    found = await ContainerSandbox().run([command], limits=limits)
    assert found.exit_status == status
    assert "--network=none" not in docker()[0]


async def test_docker_that_does_not_work_is_an_infrastructure_failure(docker):
    with pytest.raises(art.InfrastructureError, match="docker runs no container: no daemon"):
        await ContainerSandbox().run(["down"])


async def test_a_program_that_can_not_be_started_is_one_too(docker, tmp_path):
    (tmp_path / "bin" / "docker").write_text("not a program")
    with pytest.raises(art.InfrastructureError, match="a container could not be run"):
        await ContainerSandbox().run(["ls"])


def test_a_program_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(art.ConfigError, match="podman is not installed here"):
        art.sandbox("podman")


def test_a_sandbox_of_a_plugin_is_found_by_name():
    class Offers:
        @art.hookimpl
        def art_sandboxes(self):
            create = "art_core.environments.processes:SubprocessSandbox"
            return [
                art.SandboxSpec(name="mine", create=create, summary="mine"),
                art.SandboxSpec(name="gone", create="art_no_module:make", summary="gone"),
                art.SandboxSpec(name="made", create=SubprocessSandbox, summary="made"),
            ]

    plugins = art.Plugins()
    plugins.register(Offers(), "offers")
    assert isinstance(plugins.sandbox("mine").make(), SubprocessSandbox)
    assert isinstance(plugins.sandbox("made").make(folder="x"), SubprocessSandbox)
    with pytest.raises(art.PluginError, match="the sandbox 'gone' can't be loaded: ModuleNotFound"):
        plugins.sandbox("gone").make()
    with pytest.raises(art.ConfigError, match="no sandbox 'mene'; installed: gone, made, mine"):
        plugins.sandbox("mene")


@pytest.mark.parametrize(
    ("code", "passed"),
    [
        ("def add(a, b): return a + b", 1.0),
        ("def add(a, b): return a - b", 0.5),
        ("import sys; sys.exit(0)", 0.0),
        ("import time; time.sleep(3600)", 0.0),
    ],
)
async def test_code_is_tested_in_a_sandbox(code, passed):
    tests = ["assert add(1, 2) == 3", "assert add(2, 0) == 2"]
    tested = art.code_sandbox(art.sandbox(), sys.executable)
    assert await rewards.passes_tests(code, tests, timeout=1.0, sandbox=tested) == passed


async def test_code_whose_sandbox_is_down_has_no_reward():
    tested = art.code_sandbox(art.sandbox(folder="/no/such/directory"))
    with pytest.raises(art.RewardError, match="the sandbox failed"):
        await rewards.passes_tests("pass", "pass", sandbox=tested)
