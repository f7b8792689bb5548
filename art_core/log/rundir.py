"""A run's directory: where it lies, which names and steps it may have, what state it is in."""

from __future__ import annotations

import fcntl
import logging
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from operator import index
from pathlib import Path
from typing import Any, Literal

import attrs

from art_core.base.errors import ConfigError, unknown
from art_core.base.files import read_json, replace_json

log = logging.getLogger("art_core")

Status = Literal["running", "finished", "failed", "interrupted", "killed", "unreadable", "unknown"]
_LONGEST_NAME = 128
_STEPS = 1 << 63


def checked_name(kind: str, name: str) -> str:
    """Return a project's or model's name; ConfigError for one that could not be a single
    directory's name.
    """
    bad = (
        not isinstance(name, str)
        or not name.strip()
        or name != name.strip()
        or name.startswith(".")
        or any(c in "/\\:" or not c.isprintable() for c in name)
        or len(name.encode()) > _LONGEST_NAME
    )
    if bad:
        raise ConfigError(
            f"{kind} name {name!r:.80} can't be a directory's name",
            f"Use letters, digits, '-', '_', '.' and spaces inside, {_LONGEST_NAME} bytes at most, "
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


def describe_model(
    directory: Path, project: str, name: str, base_model: str | None, config: Mapping[str, Any]
) -> None:
    """Keep in a run's directory what its model is; ConfigError for what JSON can't hold."""
    described = {"project": project, "name": name, "base_model": base_model, "config": config}
    replace_json(directory / "model.json", described)


def say_status(directory: Path, status: str, attempt: int, reason: str | None = None) -> None:
    """Keep in a run's directory what state it is in, and of a failed one the reason."""
    said = {"status": status, "attempt": attempt, "pid": os.getpid(), "at": datetime.now(UTC)}
    said |= {"reason": reason} if reason else {}
    try:
        # A directory that was renamed must not come back under its old name.
        directory.stat()
        replace_json(directory / "status.json", said)
    except OSError as error:
        # A full disk, or a directory that is gone, must not keep a run from its end.
        log.warning("the run's status %r could not be kept: %s", status, error)


@attrs.frozen
class RunState:
    """A run's status; `problem` says why some of its files can't be read, None when all can.

    `reason` is why the run ended with this status, where it is known.
    """

    status: str
    problem: str | None = None
    reason: str | None = None


@attrs.frozen
class FoundRun:
    """A run on disk."""

    path: Path

    @property
    def name(self) -> str:
        """`<project>/<model>`; bytes that are not UTF-8 are escaped."""
        name = f"{self.path.parent.parent.name}/{self.path.name}"
        return os.fsencode(name).decode(errors="backslashreplace")

    @property
    def history(self) -> Path:
        """The run's log."""
        return self.path / "history.jsonl"

    def status(self) -> str:
        """Return the status of `state`."""
        return self.state().status

    def state(self) -> RunState:
        """Return the run's status. A run recorded as "running" whose log is not locked was killed.

        A log that can't be read makes the run "unreadable", a foreign `status.json` "unknown".
        """
        try:
            if _is_locked(self.history):
                return RunState("running")
        except OSError as error:
            return RunState("unreadable", read_problem(error))
        try:
            stored = read_json(self.path / "status.json")
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
        return _is_taken(fd)
    finally:
        os.close(fd)


def _is_taken(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def find_runs(base_path: Path) -> Iterator[FoundRun]:
    """Yield the runs below a directory, by project and name, readable or not.

    A directory that can't be listed is passed over with a warning.
    """
    for project in _listed(base_path):
        for path in _listed(project / "models"):
            if _is_run(path):
                yield FoundRun(path)


def _listed(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        log.warning("the runs in %s can't be listed: %s", directory, error.strerror)
        return []


def _is_run(path: Path) -> bool:
    """Return whether a directory holds a log, or hides whether it does."""
    try:
        (path / "history.jsonl").lstat()
    except (FileNotFoundError, NotADirectoryError):
        return path.is_symlink() and not path.exists()
    except OSError:
        return True
    return True


def find_run(asked: str, base_path: Path) -> FoundRun:
    """Return a run by directory, `project/name`, or a name that only one run has; ConfigError names
    the runs.
    """
    # A name of thousands of characters is no path, and asking the system for it raises.
    with suppress(OSError, ValueError):
        (Path(asked) / "history.jsonl").lstat()
        return FoundRun(Path(asked).resolve())
    runs = {run.name: run for run in find_runs(base_path)}
    fits = [
        run
        for name, run in runs.items()
        if asked in (name, run.path.name, f"{run.path.parent.parent.name}/{run.path.name}")
    ]
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise ConfigError(
            f"{len(fits)} runs are named {asked!r}: {', '.join(r.name for r in fits)}", "Say which."
        )
    remedy = "" if runs else "--dir or ART_DIR says where runs lie."
    raise ConfigError(unknown("run", asked, runs, known_as=f"in {base_path}"), remedy)
