"""The groups that jobs train on: a file each, whole or absent, until the job is over."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import attrs


@attrs.frozen
class GroupFiles:
    """`<directory>/<job>.json` of each job; made with its directory."""

    directory: Path

    def __attrs_post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)

    def of(self, job_id: str) -> Path:
        """Return where a job's groups lie."""
        return self.directory / f"{job_id}.json"

    def keep(self, job_id: str, groups: bytes) -> None:
        """Write a job's groups; they survive a kill once this returns."""
        aside = self.directory / f".{job_id}.tmp"
        with aside.open("xb") as file:
            file.write(groups)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self.of(job_id))

    def delete(self, job_id: str) -> None:
        """Delete a job's groups, if they are there."""
        self.of(job_id).unlink(missing_ok=True)

    def sweep(self, kept: Collection[str]) -> None:
        """Delete what an earlier server wrote and had no time to name, or to delete: all files but
        those of these jobs.
        """
        wanted = {self.of(job_id) for job_id in kept}
        for file in self.directory.iterdir():
            if file.is_file() and file not in wanted:
                file.unlink()
