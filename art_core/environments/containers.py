"""A sandbox of containers: Docker or Podman."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from art_core.base.errors import ConfigError, InfrastructureError, without_secrets
from art_core.environments.processes import run_limited
from art_core.environments.sandbox import (
    Sandbox,
    SandboxLimits,
    SandboxResult,
    read_files,
    write_files,
)

_KILLED = 137
_OF_THE_ENGINE = 125
"""The exit status by which Docker and Podman report that they could not run a container."""


def docker(**options: Any) -> ContainerSandbox:
    """Make a sandbox of Docker's containers."""
    return ContainerSandbox("docker", **options)


def podman(**options: Any) -> ContainerSandbox:
    """Make a sandbox of Podman's containers."""
    return ContainerSandbox("podman", **options)


class ContainerSandbox(Sandbox):
    """Runs each command in a new container of an image, with no network and few rights.

    `image` must have what the command needs; `program` is docker, podman, or the path of one;
    `start_seconds` are added to the time of each command for the start of its container. Raises
    ConfigError if the program is not installed.
    """

    def __init__(
        self,
        program: str = "docker",
        *,
        image: str = "python:3.12-slim",
        start_seconds: float = 30.0,
    ) -> None:
        found = shutil.which(program)
        if found is None:
            raise ConfigError(
                f"{program} is not installed here",
                'Install Docker or Podman, or take art.sandbox("subprocess").',
            )
        self.program, self.image, self.start_seconds = found, image, start_seconds

    async def run(
        self,
        command: Sequence[str],
        *,
        files: Mapping[str, str | bytes] | None = None,
        stdin: str = "",
        limits: SandboxLimits | None = None,
        collect: Sequence[str] = (),
    ) -> SandboxResult:
        """Run a command in a new container."""
        limits = limits or SandboxLimits()
        name = f"art-{secrets.token_hex(8)}"
        try:
            with tempfile.TemporaryDirectory(
                prefix="art-sandbox-", ignore_cleanup_errors=True
            ) as path:
                folder = Path(path)
                write_files(folder, files or {})
                whole = attrs.evolve(limits, seconds=limits.seconds + self.start_seconds)
                launched = [*self._options(name, folder, limits), *map(str, command)]
                begun = time.monotonic()
                try:
                    result = await run_limited(launched, folder, stdin=stdin, limits=whole)
                finally:
                    await self._remove(name)
                self._check(result)
                # the container's own limit on time ends as a kill for memory does
                late = time.monotonic() - begun >= limits.seconds
                status = None if late and result.exit_status == _KILLED else result.exit_status
                found = read_files(folder, collect, limits)
                return attrs.evolve(result, exit_status=status, files=found)
        except OSError as error:
            raise InfrastructureError(f"a container could not be run: {error}") from error

    async def close(self) -> None:
        """Do nothing: each command releases what it held."""

    def _options(self, name: str, folder: Path, limits: SandboxLimits) -> list[str]:
        cpu = limits.cpu_seconds
        options = [
            f"--name={name}",
            f"--volume={folder}:/work",
            "--workdir=/work",
            f"--memory={limits.memory_mb}m",
            f"--ulimit=fsize={limits.file_mb << 20}",
            f"--ulimit=nofile={limits.open_files}",
            "--pids-limit=256",
            "--cap-drop=ALL",
            "--security-opt=no-new-privileges",
            *([] if limits.network else ["--network=none"]),
            *([] if cpu is None else [f"--ulimit=cpu={round(cpu)}"]),
        ]
        limited = ["timeout", "-s", "KILL", f"{limits.seconds:g}"]
        return [self.program, "run", "--rm", "--interactive", *options, self.image, *limited]

    def _check(self, result: SandboxResult) -> None:
        if result.exit_status == _OF_THE_ENGINE:
            reason = without_secrets(result.stderr.strip())[-300:]
            raise InfrastructureError(f"{Path(self.program).name} runs no container: {reason}")

    async def _remove(self, name: str) -> None:
        """Remove a container that goes on after its command's time."""
        process = await asyncio.create_subprocess_exec(
            self.program, "rm", "--force", name,
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        await process.wait()
