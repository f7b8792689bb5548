"""Sandboxes: places that run a command apart from this program, within limits."""

from __future__ import annotations

import secrets
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import attrs

from art_core.base.errors import ConfigError
from art_core.hooks.host import installed_plugins


@attrs.frozen(kw_only=True)
class SandboxLimits:
    """The limits of one command.

    `seconds` of real time and `cpu_seconds` of processor time (by default a second more);
    `memory_mb` of address space; `file_mb` for each file that it writes; `open_files`; `output_kb`
    that are kept of each of its two outputs. It reaches no network unless `network` is True and
    as far as the sandbox can hold that. ConfigError for a limit that is not above 0.
    """

    seconds: float = 10.0
    cpu_seconds: float | None = None
    memory_mb: int = 1024
    file_mb: int = 16
    open_files: int = 64
    output_kb: int = 64
    network: bool = False

    def __attrs_post_init__(self) -> None:
        for field in attrs.fields(SandboxLimits):
            value = getattr(self, field.name)
            if field.name != "network" and value is not None and not value > 0:
                raise ConfigError(f"the limit {field.name} must be above 0, got {value!r}")


@attrs.frozen(kw_only=True)
class SandboxResult:
    """What a command did. `exit_status` is None if it took too long and was killed; of a command
    that a signal killed it is the signal's number below 0. `files` are those that were asked for
    and exist.
    """

    exit_status: int | None
    stdout: str = ""
    stderr: str = ""
    files: Mapping[str, bytes] = attrs.field(factory=dict)

    @property
    def timed_out(self) -> bool:
        """True if the command took too long."""
        return self.exit_status is None


class Sandbox(Protocol):
    """Runs commands apart from this program, each in a new directory of its own."""

    @abstractmethod
    async def run(
        self,
        command: Sequence[str],
        *,
        files: Mapping[str, str | bytes] | None = None,
        stdin: str = "",
        limits: SandboxLimits | None = None,
        collect: Sequence[str] = (),
    ) -> SandboxResult:
        """Run a command to its end, or kill it with all that it started after its time.

        `files` are put into its directory before, by relative path; `collect` names files to return
        afterwards. A command that fails, is killed or takes too long is a result. Raises
        InfrastructureError when the sandbox itself does not work, ConfigError for a path that
        leaves the directory.
        """

    async def close(self) -> None:
        """Release what the sandbox holds; a second call does nothing."""


def sandbox(name: str = "subprocess", **options: Any) -> Sandbox:
    """Make a sandbox by name: "subprocess", "docker", "podman", or one that a plugin offers.

    Raises ConfigError for an unknown name, and what the sandbox raises for its options.
    """
    made: Sandbox = installed_plugins().sandbox(name).make(**options)
    return made


_PROGRAM = """\
space = {"__name__": "answer"}
exec(compile(open("answer.py").read(), "answer.py", "exec"), space)
exec(compile(open("test.py").read(), "test.py", "exec"), space)
print(open("/dev/stdin").read(), flush=True)
"""


def code_sandbox(
    box: Sandbox, python: str = "python3"
) -> Callable[[str, str, float], Awaitable[bool]]:
    """Return what `rewards.passes_tests(sandbox=...)` takes: a function that runs code and a test
    in a sandbox, and returns whether the test passes. A program that ends early does not pass.
    """

    async def passes(code: str, test: str, timeout: float) -> bool:
        word = secrets.token_hex(16)
        found = await box.run(
            [python, "run.py"],
            files={"answer.py": code, "test.py": test, "run.py": _PROGRAM},
            stdin=word,
            limits=SandboxLimits(seconds=timeout),
        )
        return found.exit_status == 0 and found.stdout.endswith(f"{word}\n")

    return passes


def write_files(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Write a command's files; ConfigError for a path that leaves the directory."""
    for name, content in files.items():
        path = inside(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def read_files(folder: Path, names: Sequence[str], limits: SandboxLimits) -> dict[str, bytes]:
    """Return the named files that exist, each up to the limit of a file."""
    found = {}
    for name in names:
        path = inside(folder, name)
        # a link could lead to a file of this machine
        if path.is_file() and path.resolve().is_relative_to(folder.resolve()):
            with path.open("rb") as file:
                found[name] = file.read(limits.file_mb << 20)
    return found


def inside(folder: Path, name: str) -> Path:
    """Return the path of a relative name in a directory; ConfigError if it leaves it."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
        raise ConfigError(
            f"{name!r} is not a path inside the sandbox's directory", "Give a relative path."
        )
    return folder / path
