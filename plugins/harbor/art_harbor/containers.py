"""Machines that are containers of Docker or Podman."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

import art_core as art
from art_core.base.errors import without_secrets
from art_harbor.machine import Machine

_KEPT = 64 << 10
_SLACK_SECONDS = 30.0
_KILLED = 137
_CHUNK = 1 << 16
_locks: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, asyncio.Lock]] = WeakKeyDictionary()


class Container(Machine):
    """A container that runs until it is closed, and `life` seconds at the most."""

    def __init__(self, program: str) -> None:
        found = shutil.which(program)
        if found is None:
            raise art.ConfigError(
                f"{program} is not installed here",
                'Install Docker or Podman; for tasks that need no image take sandbox="subprocess".',
            )
        self.program = found
        self.name = f"art-harbor-{secrets.token_hex(8)}"

    async def start(self, image: str, *, options: Sequence[str], life: float) -> None:
        """Start the container."""
        waits = f"sleep {round(life)}"
        named = ("run", "--detach", "--rm", "--stop-timeout=0", "--name", self.name, *options)
        await self._done(*named, image, "sh", "-c", waits, seconds=life)

    async def image_of(self, context: Path, seconds: float) -> str:
        """Build the image of a directory, unless its files were built before; return its name."""
        tag = f"art-harbor-{await asyncio.to_thread(_digest, context)}"
        locks = _locks.setdefault(asyncio.get_running_loop(), {})
        async with locks.setdefault(tag, asyncio.Lock()):
            known = await self._ran("image", "inspect", tag, seconds=_SLACK_SECONDS)
            if known.exit_status != 0:
                await self._done("build", "--tag", tag, str(context), seconds=seconds)
        return tag

    async def run(
        self, command: str, *, seconds: float, env: Mapping[str, str] | None = None, user: str = ""
    ) -> art.SandboxResult:
        """Run a command in the container."""
        variables = [f"--env={name}={value}" for name, value in (env or {}).items()]
        users = ["--user", user] if user else []
        limited = ["timeout", "-s", "KILL", f"{seconds:g}", "bash", "-c", command]
        begun = time.monotonic()
        found = await self._ran(
            "exec", *users, *variables, self.name, *limited, seconds=seconds + _SLACK_SECONDS
        )
        if found.exit_status != 0:  # Docker reports a container that is gone as a command does
            await self._done("exec", self.name, "true", seconds=_SLACK_SECONDS)
        late = time.monotonic() - begun >= seconds and found.exit_status == _KILLED
        status = None if late else found.exit_status
        return art.SandboxResult(exit_status=status, stdout=found.stdout, stderr=found.stderr)

    async def put(self, place: str, packed: bytes) -> None:
        """Copy an archive's files into the container."""
        made = ("exec", "--user", "0", self.name, "mkdir", "-p", place)
        await self._done(*made, seconds=_SLACK_SECONDS)
        await self._done("cp", "-", f"{self.name}:{place}", seconds=300.0, stdin=packed)

    async def get(self, path: str) -> bytes | None:
        """Copy a file or a directory out of the container."""
        there = await self._ran("exec", self.name, "test", "-e", path, seconds=_SLACK_SECONDS)
        if there.exit_status == 1:
            return None
        copied: bytes = await self._output("cp", f"{self.name}:{path}", "-")
        return copied

    async def close(self) -> None:
        """Remove the container."""
        await self._ran("rm", "--force", self.name, seconds=_SLACK_SECONDS)

    async def _done(self, *arguments: str, seconds: float, stdin: bytes = b"") -> None:
        """Run the engine; InfrastructureError if it fails."""
        found = await self._ran(*arguments, seconds=seconds, stdin=stdin)
        if found.exit_status != 0:
            raise self._failure(arguments[0], found.stderr or found.stdout)

    async def _ran(self, *arguments: str, seconds: float, stdin: bytes = b"") -> art.SandboxResult:
        """Run the engine, and keep the beginning of its output."""
        process = await self._begun(*arguments)
        assert process.stdin and process.stdout and process.stderr
        try:
            async with asyncio.timeout(seconds):
                out, err, _, status = await asyncio.gather(
                    _read(process.stdout),
                    _read(process.stderr),
                    _write(process.stdin, stdin),
                    process.wait(),
                )
        except TimeoutError as error:
            raise self._failure(arguments[0], f"no answer within {seconds:g} s") from error
        finally:
            await _end(process)
        return art.SandboxResult(exit_status=status, stdout=out, stderr=err)

    async def _output(self, *arguments: str) -> bytes:
        process = await self._begun(*arguments)
        try:
            async with asyncio.timeout(300.0):
                out, err = await process.communicate()
        except TimeoutError as error:
            raise self._failure(arguments[0], "no answer within 300 s") from error
        finally:
            await _end(process)
        if process.returncode != 0:
            raise self._failure(arguments[0], err.decode(errors="replace"))
        return out

    async def _begun(self, *arguments: str) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        try:
            return await asyncio.create_subprocess_exec(
                self.program, *arguments, stdin=pipe, stdout=pipe, stderr=pipe
            )
        except OSError as error:
            raise self._failure(arguments[0], str(error)) from error

    def _failure(self, what: str, reason: str) -> art.InfrastructureError:
        shown = without_secrets(reason.strip())[-300:]
        return art.InfrastructureError(f"{Path(self.program).name} {what} failed: {shown}")


async def _read(stream: asyncio.StreamReader) -> str:
    """Read a stream to its end; keep its beginning."""
    kept = bytearray()
    while data := await stream.read(_CHUNK):
        kept += data[: _KEPT - len(kept)]
    return kept.decode(errors="replace")


async def _write(stream: asyncio.StreamWriter, data: bytes) -> None:
    try:
        stream.write(data)
        await stream.drain()
    except ConnectionError:  # it reads no more; its status shows why
        pass
    finally:
        stream.close()


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
        await process.wait()


def _digest(folder: Path) -> str:
    """Return a digest of a directory's files: their paths, modes and contents."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            mode = path.stat().st_mode
            found.update(f"{path.relative_to(folder)}\0{mode}\0{path.stat().st_size}\0".encode())
            found.update(path.read_bytes())
    return found.hexdigest()[:24]
