"""A run's directory: its path and files, valid names and steps, and its status."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import orjson

from art_core.base.files import checked_name, json_line, read_json, replace_json, take_lock

log = logging.getLogger("art_core")

_MODEL, _STATUS, _OPTIONS = "model.json", "status.json", "options.jsonl"


def runs_path(base_path: str | Path | None) -> Path:
    """Return the directory of all runs: what was given, else `ART_DIR`, else `.art`."""
    return Path(base_path or os.environ.get("ART_DIR") or ".art")


def run_directory(base_path: Path, project: str, name: str) -> Path:
    """Return `<base_path>/<project>/models/<name>`, the layout of the ART reference."""
    return base_path / checked_name("project", project) / "models" / checked_name("model", name)


def history_file(run_dir: Path) -> Path:
    """Return the path of a run's log."""
    return run_dir / "history.jsonl"


def budget_file(run_dir: Path) -> Path:
    """Return the path of the reservations of a run's budget."""
    return run_dir / "budget.jsonl"


def checkpoint_folder(run_dir: Path) -> Path:
    """Return the directory in which backends keep a run's checkpoints, one directory per step."""
    return run_dir / "checkpoints"


def append_options(run_dir: Path, step: int, options: Mapping[str, Any]) -> None:
    """Store the options that a step was trained with; functions are stored as text."""
    with (run_dir / _OPTIONS).open("ab") as file:
        file.write(json_line({"step": step, "options": dict(options)}))


def read_options(run_dir: Path, step: int) -> dict[str, Any]:
    """Return the options that a step was last trained with; none if they were not stored."""
    found: dict[str, Any] = {}
    with suppress(FileNotFoundError), (run_dir / _OPTIONS).open("rb") as file:
        for line in file:
            with suppress(ValueError):  # the last line of a killed process may be torn
                stored = orjson.loads(line)
                found = stored["options"] if stored["step"] == step else found
    return found


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
