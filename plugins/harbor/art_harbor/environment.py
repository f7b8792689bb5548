"""An environment whose scenarios are task directories of Harbor."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import art_core as art
from art_harbor.containers import Container
from art_harbor.host import Host
from art_harbor.machine import Machine, pack, unpack_file
from art_harbor.task import HarborTask, resolved

_LOGS = "/logs/verifier"
_MAKE_LOGS = "mkdir -p /logs/agent /logs/verifier /logs/artifacts && chmod -R 777 /logs"
_MAX_TEXT = 10_000
_LIFE_SLACK = 600.0


class HarborEnvironment(art.Environment):
    """A task that the model solves with a shell, in a machine of the attempt's own.

    A scenario is the path of a task directory, or a mapping with it in `path`, as
    `harbor_scenarios` returns them. `sandbox` is "docker", "podman", the path of such a program, or
    "subprocess" for tasks that need no image. The attempt ends with the first message that calls no
    tool, or after the agent's time of `task.toml`; then `tests/test.sh` gives the reward.

    `command_seconds` limits a command of the model. With `network=False` commands reach none, also
    where the task permits it; with "subprocess" they never do. If the tests give several rewards,
    `reward` names the one that counts; the others are metrics.
    """

    def __init__(
        self,
        *,
        sandbox: str = "docker",
        instructions: str = "",
        command_seconds: float = 120.0,
        network: bool = True,
        reward: str = "reward",
        max_turns: int = 50,
    ) -> None:
        self.sandbox, self.instructions, self.network = sandbox, instructions, network
        self.command_seconds, self.reward, self.max_turns = command_seconds, reward, max_turns
        self._box = art.Toolbox([self.bash])
        self._machines: list[Machine] = []
        self._until = math.inf
        self._task: HarborTask | None = None

    @property
    def task(self) -> HarborTask:
        """The task of the attempt."""
        assert self._task is not None
        return self._task

    async def reset(self, scenario: Any) -> Sequence[dict[str, Any]]:
        """Start the machine; return the instruction."""
        self._task = HarborTask.read(_path(scenario))
        self.tools = self._box.schemas
        env = resolved(self.task.env)
        machine = await self._machine(self.task.context, self.task.image, env)
        await machine.run(_MAKE_LOGS, seconds=60, user="0")
        self._until = time.monotonic() + self.task.agent_seconds
        first = [{"role": "system", "content": self.instructions}] if self.instructions else []
        return [*first, {"role": "user", "content": self.task.instruction}]

    async def bash(self, command: str) -> str:
        """Run a command in a shell. Files stay between commands, the directory does not."""
        limit = max(min(self.command_seconds, self._until - time.monotonic()), 0.1)
        found = await self._machines[0].run(
            f"{command}\n", seconds=limit, user=self.task.agent_user
        )
        ended = f"killed after {limit:.0f} s" if found.timed_out else f"exit {found.exit_status}"
        return f"{_shortened(found.stdout + found.stderr)}\n[{ended}]".lstrip("\n")

    async def respond(self, message: dict[str, Any]) -> Sequence[dict[str, Any]] | None:
        """Return the results of the message's commands; None for a message without calls, and when
        the time is over.
        """
        answers = await self._box.answers(message)
        return answers if answers and time.monotonic() < self._until else None

    async def score(self, trajectory: art.Trajectory) -> float:
        """Run the tests; return the reward that they write.

        Tests that take too long give 0. Tests that write no reward are an infrastructure failure.
        """
        machine = await self._verifier()
        await machine.run(f"rm -rf {_LOGS}/reward.*; {_MAKE_LOGS}", seconds=60, user="0")
        found = await machine.run(
            f"chmod +x /tests/test.sh; /tests/test.sh > {_LOGS}/test-stdout.txt 2>&1",
            seconds=self.task.verifier_seconds,
            env=resolved(self.task.verifier_env),
            user=self.task.verifier_user,
        )
        rewards = await self._rewards(machine)
        if rewards is None and found.timed_out:
            trajectory.metrics["tests_timed_out"] = 1.0
            return 0.0
        if rewards is None:
            raise art.InfrastructureError(
                f"the tests of the Harbor task {self.task.name} wrote no reward (exit "
                f"{found.exit_status}): {await self._last_words(machine)}"
            )
        reward = _reward(rewards, self.reward, self.task.name)
        trajectory.metrics |= {k: v for k, v in rewards.items() if k != "reward"}
        return reward

    async def close(self) -> None:
        """Remove the machines."""
        for machine in self._machines:
            await machine.close()

    async def _machine(self, context: Path, image: str, env: Mapping[str, str]) -> Machine:
        """Start a machine of an image, or of a directory with a Dockerfile."""
        task = self.task
        if self.sandbox == "subprocess":
            host = Host(task, context, env)
            self._machines.append(host)
            await host.start()
            return host
        container = Container(self.sandbox)
        self._machines.append(container)
        image = image or await container.image_of(context, task.build_seconds)
        options = [
            *([f"--memory={task.memory_mb}m"] if task.memory_mb else []),
            *([f"--cpus={task.cpus:g}"] if task.cpus else []),
            *([] if task.network and self.network else ["--network=none"]),
            *([f"--workdir={task.workdir}"] if task.workdir else []),
            *(f"--env={name}={value}" for name, value in env.items()),
        ]
        life = task.agent_seconds + task.verifier_seconds + _LIFE_SLACK
        await container.start(image, options=options, life=life)
        return container

    async def _verifier(self) -> Machine:
        """Return the machine of the tests, with the tests in it."""
        task, first = self.task, self._machines[0]
        if not task.separate:
            await first.run("rm -rf /tests", seconds=60, user="0")
            await first.put("/tests", pack(task.tests))
            return first
        published = [(path, await first.get(path)) for path in task.artifacts]
        bundled = bool(task.verifier_image) or (task.tests / "Dockerfile").is_file()
        context = task.tests if bundled else task.context
        image = task.verifier_image if bundled else task.image
        machine = await self._machine(context, image, {})
        if not bundled:
            await machine.put("/tests", pack(task.tests))
        for path, packed in published:
            if packed is not None:
                await machine.put(str(Path(path).parent), packed)
        return machine

    async def _rewards(self, machine: Machine) -> dict[str, float] | None:
        """Return the rewards that the tests wrote, None if there are none."""
        for name in ("reward.json", "reward.txt"):
            packed = await machine.get(f"{_LOGS}/{name}")
            if packed is not None:
                return _parsed(unpack_file(packed), name, self.task.name)
        return None

    async def _last_words(self, machine: Machine) -> str:
        packed = await machine.get(f"{_LOGS}/test-stdout.txt")
        return unpack_file(packed).decode(errors="replace").strip()[-300:] if packed else ""


def _path(scenario: Any) -> str | Path:
    path = scenario.get("path") if isinstance(scenario, Mapping) else scenario
    if not isinstance(path, (str, Path)) or not str(path):
        raise art.ConfigError(
            f"the scenario {scenario!r:.80} names no task directory",
            'Give its path, or {"path": "..."}; harbor_scenarios(folder) lists them.',
        )
    return path


def _parsed(content: bytes, name: str, task: str) -> dict[str, float]:
    """Return rewards by name; InfrastructureError for anything else than finite numbers."""
    try:
        found = json.loads(content) if name.endswith(".json") else float(content)
        rewards = found if isinstance(found, dict) else {"reward": found}
        numbers = {str(key): float(value) for key, value in rewards.items()}
        if numbers and all(map(math.isfinite, numbers.values())):
            return numbers
        reason = "no finite number"
    except (ValueError, TypeError) as error:
        reason = str(error)
    raise art.InfrastructureError(
        f"the tests of the Harbor task {task} wrote no reward into {name}: {reason}"
    )


def _reward(rewards: Mapping[str, float], name: str, task: str) -> float:
    if name in rewards:
        return rewards[name]
    if len(rewards) == 1:
        return next(iter(rewards.values()))
    raise art.ConfigError(
        f"the tests of the Harbor task {task} give several rewards, and none is named {name!r}: "
        f"{', '.join(rewards)}",
        "Name the one that counts: HarborEnvironment(reward=...).",
    )


def _shortened(text: str) -> str:
    if len(text) <= _MAX_TEXT:
        return text
    half = _MAX_TEXT // 2
    return f"{text[:half]}\n[{len(text) - _MAX_TEXT} characters left out]\n{text[-half:]}"
