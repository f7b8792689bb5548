"""A sandbox of processes of this machine, within limits that the system holds."""

from __future__ import annotations

import asyncio
import functools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import attrs

from art_core.base.errors import ConfigError, InfrastructureError
from art_core.environments.sandbox import (
    Sandbox,
    SandboxLimits,
    SandboxResult,
    read_files,
    write_files,
)

_LAUNCH = """\
import json, os, resource, sys
limits, command = json.loads(sys.argv[1]), sys.argv[2:]
for name, value in limits.items():
    kind = getattr(resource, name, None)
    if kind is not None:
        resource.setrlimit(kind, (value, value))
try:
    os.execvp(command[0], command)
except OSError as error:
    print(f"{command[0]}: {error.strerror}", file=sys.stderr, flush=True)
    os._exit(127)
"""
_UNSHARE = ("unshare", "--map-root-user", "--pid", "--fork", "--kill-child")
_CHUNK = 1 << 16
_DRAIN_SECONDS = 1.0
_FIRST_PAUSE, _LAST_PAUSE = 0.002, 0.1


class SubprocessSandbox(Sandbox):
    """Runs commands as processes of this machine, with limits of the system and few variables.

    Where Linux permits new namespaces (`unshare`), a command has no network, and all that it
    started ends with it. A command can read this machine's files: for code that you do not trust
    take a container. With `strict=True` it is a ConfigError if namespaces are not permitted here.
    `folder` is where the directories of commands are made, by default the system's for such.
    """

    def __init__(self, *, strict: bool = False, folder: str | Path | None = None) -> None:
        self.folder = folder
        if strict and not namespaces():
            raise ConfigError(
                "this machine permits no new namespaces, so commands would reach the network",
                'Take art.sandbox("docker"), or leave out strict=True.',
            )

    async def run(
        self,
        command: Sequence[str],
        *,
        files: Mapping[str, str | bytes] | None = None,
        stdin: str = "",
        limits: SandboxLimits | None = None,
        collect: Sequence[str] = (),
    ) -> SandboxResult:
        """Run a command in a new directory."""
        limits = limits or SandboxLimits()
        try:
            with tempfile.TemporaryDirectory(
                prefix="art-sandbox-", dir=self.folder, ignore_cleanup_errors=True
            ) as name:
                folder = Path(name)
                write_files(folder, files or {})
                launched = [*_wrapped(limits), *map(str, command)]
                result = await run_limited(
                    launched, folder, stdin=stdin, limits=limits, env=_variables(folder)
                )
                return attrs.evolve(result, files=read_files(folder, collect, limits))
        except OSError as error:
            raise InfrastructureError(
                f"a command could not be run in a sandbox: {error}"
            ) from error

    async def close(self) -> None:
        """Do nothing: each command releases what it held."""


def _wrapped(limits: SandboxLimits) -> list[str]:
    unshare: list[str] = []
    if namespaces():
        unshare = [*_UNSHARE, *(() if limits.network else ("--net",)), "--"]
    seconds = limits.seconds + 1 if limits.cpu_seconds is None else limits.cpu_seconds
    system = {
        "RLIMIT_CPU": math.ceil(seconds),
        "RLIMIT_AS": limits.memory_mb << 20,
        "RLIMIT_FSIZE": limits.file_mb << 20,
        "RLIMIT_NOFILE": limits.open_files,
        "RLIMIT_CORE": 0,
    }
    return [*unshare, sys.executable, "-I", "-S", "-c", _LAUNCH, json.dumps(system)]


def _variables(folder: Path) -> dict[str, str]:
    path = os.environ.get("PATH", os.defpath)
    return {"PATH": path, "HOME": str(folder), "TMPDIR": str(folder), "LANG": "C.UTF-8"}


@functools.cache
def namespaces() -> bool:
    """Return whether this machine permits commands in new namespaces."""
    if shutil.which(_UNSHARE[0]) is None:
        return False
    tried = [*_UNSHARE, "--net", "--", "true"]
    return subprocess.run(tried, check=False, capture_output=True, timeout=30).returncode == 0


async def run_limited(
    command: Sequence[str],
    folder: Path,
    *,
    stdin: str,
    limits: SandboxLimits,
    env: Mapping[str, str] | None = None,
) -> SandboxResult:
    """Run a command with limits on its time and on the output that is kept; kill its process group
    at the end. Raises OSError when it can't be started.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env=None if env is None else dict(env),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    kept = limits.output_kb << 10
    reading = [
        asyncio.create_task(_first(stream, kept)) for stream in (process.stdout, process.stderr)
    ]
    writing = asyncio.create_task(_write(process.stdin, stdin.encode(errors="replace")))
    late = False
    try:
        await asyncio.wait_for(_ended(process), limits.seconds)
    except TimeoutError:
        late = True
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await _ended(process)
        writing.cancel()
        await asyncio.wait(reading, timeout=_DRAIN_SECONDS)
        for task in reading:
            task.cancel()
    texts = [b"" if task.cancelled() or not task.done() else task.result() for task in reading]
    stdout, stderr = (text.decode(errors="replace") for text in texts)
    status = None if late else process.returncode
    return SandboxResult(exit_status=status, stdout=stdout, stderr=stderr)


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Wait for the end of a process. `wait` waits for those too that hold its outputs open."""
    pause = _FIRST_PAUSE
    while process.returncode is None:
        await asyncio.sleep(pause)
        pause = min(_LAST_PAUSE, pause * 1.5)


async def _first(stream: asyncio.StreamReader, most: int) -> bytes:
    """Return the first bytes of a stream, which is read to its end."""
    found = bytearray()
    while chunk := await stream.read(_CHUNK):
        found += chunk[: max(0, most - len(found))]
    return bytes(found)


async def _write(stream: asyncio.StreamWriter, data: bytes) -> None:
    with suppress(ConnectionError):  # it ended, or closed its input
        stream.write(data)
        await stream.drain()
        stream.close()
