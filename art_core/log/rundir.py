"""A run's directory: its path and files, valid names and steps, and its status."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Mapping
from datetime import UTC, datetime
from operator import index
from pathlib import Path
from typing import Any

import attrs

from art_core.base.errors import ConfigError
from art_core.base.files import read_json, replace_json, take_lock

log = logging.getLogger("art_core")

_MAX_BYTES = 128
_STEPS = 1 << 63
_MODEL, _STATUS = "model.json", "status.json"


def checked_name(kind: str, name: str) -> str:
    """Return a project's or model's name; ConfigError if it can't be the name of one directory."""
    bad = (
        not isinstance(name, str)
        or not name.strip()
        or name != name.strip()
        or name.startswith(".")
        or any(c in "/\\:" or not c.isprintable() for c in name)
        or len(name.encode()) > _MAX_BYTES
    )
    if bad:
        raise ConfigError(
            f"{kind} name {name!r:.80} can't be a directory's name",
            f"Use letters, digits, '-', '_', '.' and spaces inside, {_MAX_BYTES} bytes at most, "
            "not beginning with '.'.",
        )
    return name


def checked_step(step: int) -> int:
    """Return a training step as an int, also one of numpy's; ConfigError for any other value."""
    try:
        whole = index(step)
    except TypeError:
        whole = -1
    if not 0 <= whole < _STEPS:
        raise ConfigError(f"a step must be a whole number from 0 to 2**63 - 1, got {step!r:.80}")
    return whole


def runs_path(base_path: str | Path | None) -> Path:
    """Return the directory of all runs: what was given, else `ART_DIR`, else `.art`."""
    return Path(base_path or os.environ.get("ART_DIR") or ".art")


def run_directory(base_path: Path, project: str, name: str) -> Path:
    """Return `<base_path>/<project>/models/<name>`, the layout of the ART reference."""
    return base_path / checked_name("project", project) / "models" / checked_name("model", name)


def history_file(run_dir: Path) -> Path:
    """Return the path of a run's log."""
    return run_dir / "history.jsonl"


def trajectory_file(run_dir: Path, split: str, step: int) -> Path:
    """Return the path of the trajectories of a split and step."""
    return trajectory_folder(run_dir, split) / f"{step:04d}.jsonl"


def trajectory_folder(run_dir: Path, split: str = "") -> Path:
    """Return the directory of a run's trajectories, or of those of a split; ConfigError for a
    split that cannot name a directory.
    """
    folder = run_dir / "trajectories"
    return folder / checked_name("split", split) if split else folder


def checkpoint_folder(run_dir: Path) -> Path:
    """Return the directory in which backends keep a run's checkpoints, one directory per step."""
    return run_dir / "checkpoints"


def describe_model(
    directory: Path, project: str, name: str, base_model: str | None, config: Mapping[str, Any]
) -> None:
    """Write a run's `model.json`; ConfigError for values that JSON can't hold."""
    described = {"project": project, "name": name, "base_model": base_model, "config": config}
    replace_json(directory / _MODEL, described)


def read_model(directory: Path) -> dict[str, Any]:
    """Read a run's `model.json`; an empty dict if there is none that can be read."""
    try:
        return read_json(directory / _MODEL)
    except (OSError, ValueError):
        return {}


def write_status(directory: Path, status: str, attempt: int, reason: str | None = None) -> None:
    """Write a run's `status.json`: its status and, of a failed run, the reason."""
    stored = {"status": status, "attempt": attempt, "pid": os.getpid(), "at": datetime.now(UTC)}
    stored |= {"reason": reason} if reason else {}
    try:
        # A directory that was renamed must not come back under its old name.
        directory.stat()
        replace_json(directory / _STATUS, stored)
    except OSError as error:
        # A full disk, or a directory that is gone, must not keep a run from its end.
        log.warning("the run's status %r could not be kept: %s", status, error)


@attrs.frozen
class RunState:
    """A run's status. `problem` is why some of its files cannot be read; None if all can.

    `reason` is why the run ended with this status, if it is known.
    """

    status: str
    problem: str | None = None
    reason: str | None = None


def read_state(directory: Path) -> RunState:
    """Return a run's status. A run recorded as "running" whose log is not locked was killed.

    A log that can't be read makes the run "unreadable", and a foreign `status.json` "unknown".
    """
    try:
        if _is_locked(history_file(directory)):
            return RunState("running")
    except OSError as error:
        return RunState("unreadable", read_problem(error))
    try:
        stored = read_json(directory / _STATUS)
    except (OSError, ValueError) as error:
        return RunState("unknown", read_problem(error))
    status, reason = stored.get("status", "unknown"), stored.get("reason")
    if not isinstance(status, str) or not status.isprintable():
        return RunState("unknown", f"status.json holds the status {status!r:.80}")
    if status in ("running", "finished") or not isinstance(reason, str):
        reason = None
    return RunState("killed" if status == "running" else status, reason=reason)


def read_problem(error: Exception) -> str:
    """Return in one line why a run's file can't be read."""
    if isinstance(error, OSError) and error.strerror:
        file = Path(error.filename).name if error.filename else "a file"
        return f"{file}: {error.strerror}"
    return " ".join(f"{error}".split()) or type(error).__name__


def _is_locked(path: Path) -> bool:
    # O_NONBLOCK: opening a named pipe must not wait for a writer.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            kind = "Is a directory" if stat.S_ISDIR(mode) else "Is no regular file"
            raise OSError(0, kind, str(path))
        return not take_lock(fd, shared=True)
    finally:
        os.close(fd)
