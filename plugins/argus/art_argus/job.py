"""Who the events are about: the ids, names and origin of a run on Argus."""

from __future__ import annotations

import getpass
import hashlib
import re
import socket
import subprocess

import attrs

from art_core import RunInfo

_LONGEST_BATCH, _LONGEST_JOB = 128, 256
_OUTSIDE = re.compile(r"[^\w.-]+")


@attrs.frozen(kw_only=True)
class Job:
    """A run on Argus: a batch with one job. Argus ranks one job for each model and dataset."""

    batch_id: str
    job_id: str
    model: str
    dataset: str
    source: dict[str, str]

    @classmethod
    def of(cls, run: RunInfo, task: str | None = None) -> Job:
        """Return the job of a run; its ids are the same in every attempt."""
        # Without the mark, project "a-b" with model "c" and "a" with "b-c" would be one batch.
        mark = f"-{_short_hash(run.project)}" if "-" in run.project else ""
        return cls(
            batch_id=safe_id(f"{run.project}-{run.name}{mark}", _LONGEST_BATCH),
            job_id=safe_id(f"{run.project}.{run.name}", _LONGEST_JOB),
            model=run.name,
            dataset=str(task or run.config.get("task") or run.project),
            source={"project": safe_id(run.project, _LONGEST_BATCH), **origin()},
        )


def safe_id(text: str, longest: int) -> str:
    """Return an id that fits into a URL's path: letters, digits, `_`, `.` and `-`.

    An id that had to change ends in a short hash of what it was, so that two stay two.
    """
    safe = _OUTSIDE.sub("-", text)
    if safe == text and len(text) <= longest:
        return text
    return f"{safe[: longest - 9]}-{_short_hash(text)}"


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def origin() -> dict[str, str]:
    """Return where the run comes from: host, user and the commit of the working directory."""
    found = {"host": socket.gethostname(), "user": _user(), "commit": _commit()}
    return {name: value for name, value in found.items() if value}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return ""


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=2, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
