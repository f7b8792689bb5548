"""A run's directory: where it lies, which names and steps it may have, what state it is in."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from operator import index
from pathlib import Path
from typing import Any, Literal

import attrs

from art_core.errors import ConfigError, unknown
from art_core.files import read_json, replace_json

log = logging.getLogger("art_core")

Status = Literal["running", "finished", "failed", "killed", "unknown"]
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
        replace_json(directory / "status.json", said)
    except OSError as error:
        # A full disk, or a directory that is gone, must not keep a run from its end.
        log.warning("the run's status %r could not be kept: %s", status, error)


@attrs.frozen
class FoundRun:
    """A run on disk."""

    path: Path

    @property
    def name(self) -> str:
        """`<project>/<model>`."""
        return f"{self.path.parent.parent.name}/{self.path.name}"

    @property
    def history(self) -> Path:
        """The run's log."""
        return self.path / "history.jsonl"

    def status(self) -> Status:
        """Tell what became of the run; a log that nobody holds although it says running was
        killed.
        """
        if _is_locked(self.history):
            return "running"
        said = read_json(self.path / "status.json").get("status", "unknown")
        return "killed" if said == "running" else said


def _is_locked(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def find_runs(base_path: Path) -> Iterator[FoundRun]:
    """Yield the runs below a directory, by project and name."""
    for history in sorted(base_path.glob("*/models/*/history.jsonl")):
        yield FoundRun(history.parent)


def find_run(asked: str, base_path: Path) -> FoundRun:
    """Return a run by directory, `project/name`, or a name that only one run has; ConfigError names
    the runs.
    """
    # A name of thousands of characters is no path, and asking the system for it raises.
    with suppress(OSError):
        if (Path(asked) / "history.jsonl").is_file():
            return FoundRun(Path(asked).resolve())
    runs = {run.name: run for run in find_runs(base_path)}
    fits = [run for name, run in runs.items() if asked in (name, run.path.name)]
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise ConfigError(
            f"{len(fits)} runs are named {asked!r}: {', '.join(r.name for r in fits)}", "Say which."
        )
    remedy = "" if runs else "--dir or ART_DIR says where runs lie."
    raise ConfigError(unknown("run", asked, runs, known_as=f"in {base_path}"), remedy)
