"""A task directory of Harbor, read and checked."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from art_core import ConfigError

_CANARY = re.compile(r"^(<!--.*canary.*-->|#.*canary.*)$", re.IGNORECASE)
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
_SIZES = {"K": 1 / 1024, "M": 1, "G": 1024}
_NO_LIMIT = 3600.0
PUBLISHED = "/logs/artifacts"


@attrs.frozen(kw_only=True)
class HarborTask:
    """A task directory: `task.toml`, `instruction.md`, `environment/`, `tests/` and `solution/`.

    `HarborTask.read(folder)` makes one. Times are in seconds, `memory_mb` is 0 without a limit.
    `image` is the name of an image, or "" for that of `environment/Dockerfile`. If `separate` is
    True, the tests run in a machine of their own, which gets the `artifacts`: absolute paths.
    """

    folder: Path
    name: str
    instruction: str
    image: str = ""
    verifier_image: str = ""
    workdir: str = ""
    memory_mb: int = 0
    cpus: float = 0.0
    network: bool = True
    separate: bool = False
    artifacts: tuple[str, ...] = (PUBLISHED,)
    env: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    verifier_env: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    solution_env: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    agent_user: str = ""
    verifier_user: str = ""
    agent_seconds: float = _NO_LIMIT
    verifier_seconds: float = _NO_LIMIT
    build_seconds: float = 600.0

    @classmethod
    def read(cls, folder: str | Path) -> HarborTask:
        """Read a task directory. Raises ConfigError for one that is incomplete, and for one that
        asks for something that can't be given here.
        """
        place = Path(folder).resolve()
        try:
            config = tomllib.loads((place / "task.toml").read_text())
            instruction = (place / "instruction.md").read_text()
            _check(place, config)
            return cls(
                folder=place,
                name=place.name,
                instruction=_without_canary(instruction),
                **_fields(config),
            )
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"the Harbor task {place} can't be read: {error}") from error

    @property
    def context(self) -> Path:
        """The directory of the image's files."""
        return self.folder / "environment"

    @property
    def tests(self) -> Path:
        """The directory of the tests."""
        return self.folder / "tests"

    @property
    def solution(self) -> Path:
        """The directory of the right solution."""
        return self.folder / "solution"


def resolved(env: Mapping[str, str]) -> dict[str, str]:
    """Replace `${NAME}` and `${NAME:-default}` by this process's variables; ConfigError for one
    that is not set.
    """

    def value(found: re.Match[str]) -> str:
        given = os.environ.get(found[1], found[2])
        if given is None:
            raise ConfigError(f"a Harbor task needs the environment variable {found[1]}")
        return given

    return {name: _VARIABLE.sub(value, text) for name, text in env.items()}


def _fields(config: Mapping[str, Any]) -> dict[str, Any]:
    agent, verifier = config.get("agent", {}), config.get("verifier", {})
    world = config.get("environment", {})
    own = verifier.get("environment")
    mode = verifier.get("environment_mode", "separate" if own else "shared")
    listed = [_source(entry) for entry in config.get("artifacts", [])]
    return {
        "image": world.get("docker_image") or "",
        "verifier_image": (own or {}).get("docker_image") or "",
        "workdir": world.get("workdir") or "",
        "memory_mb": int(world.get("memory_mb") or _megabytes(world.get("memory", "0M"))),
        "cpus": float(world.get("cpus") or 0.0),
        "network": world.get("network_mode") != "no-network"
        and world.get("allow_internet") is not False,
        "separate": mode == "separate",
        "artifacts": tuple(dict.fromkeys([PUBLISHED, *listed])),
        "env": dict(world.get("env", {})),
        "verifier_env": dict(verifier.get("env", {})),
        "solution_env": dict(config.get("solution", {}).get("env", {})),
        "agent_user": _user(agent),
        "verifier_user": _user(verifier),
        "agent_seconds": float(agent.get("timeout_sec") or _NO_LIMIT),
        "verifier_seconds": float(verifier.get("timeout_sec") or _NO_LIMIT),
        "build_seconds": float(world.get("build_timeout_sec") or 600.0),
    }


def _check(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise ConfigError for what a task asks for and can't be given."""
    world, verifier = config.get("environment", {}), config.get("verifier", {})
    modes = {part.get("network_mode") for part in (world, verifier, config.get("agent", {}))}
    composed = folder / "environment" / "docker-compose.yaml"
    asked = {
        "several steps": bool(config.get("steps")),
        "Windows": str(world.get("os", "linux")).lower() != "linux",
        "several containers (docker-compose.yaml)": composed.exists(),
        "GPUs": bool(world.get("gpus")),
        "a TPU": bool(world.get("tpu")),
        "MCP servers": bool(world.get("mcp_servers")),
        "a health check": bool(world.get("healthcheck")),
        "a list of allowed hosts": "allowlist" in modes,
    }
    for what, is_asked in asked.items():
        if is_asked:
            raise ConfigError(
                f"the Harbor task {folder.name} needs {what}, which art-harbor does not offer",
                "Leave it out of the folder, or run it with Harbor itself.",
            )
    if not (folder / "tests" / "test.sh").is_file():
        raise ConfigError(f"the Harbor task {folder} has no tests/test.sh")


def _source(entry: Any) -> str:
    path = entry if isinstance(entry, str) else entry["source"]
    if not str(path).startswith("/") or ".." in Path(path).parts:
        raise ConfigError(f"the artifact {path!r} of a Harbor task is no absolute path")
    return str(path)


def _user(part: Mapping[str, Any]) -> str:
    user = part.get("user")
    return "" if user is None else str(user)


def _megabytes(text: str) -> float:
    return float(text[:-1]) * _SIZES[text[-1].upper()]


def _without_canary(text: str) -> str:
    """Leave out the marks at the beginning that keep a benchmark out of training data."""
    lines = text.split("\n")
    while lines and (_CANARY.match(lines[0].strip()) or not lines[0].strip()):
        del lines[0]
    return "\n".join(lines)
