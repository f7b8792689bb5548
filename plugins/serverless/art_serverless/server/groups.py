"""The groups that jobs train on: a file each, whole or absent, until the job is over."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

import attrs

from art_core.base.files import replace_bytes

log = logging.getLogger("art_serverless")


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
        """Write a job's groups; they survive a kill once this returns. Nothing stays of groups that
        could not be written.
        """
        replace_bytes(self.of(job_id), groups)

    def delete(self, job_id: str) -> None:
        """Delete a job's groups, if they are there. What cannot be deleted is swept by the next
        server.
        """
        try:
            self.of(job_id).unlink(missing_ok=True)
        except OSError as error:
            log.warning("the groups of job %s could not be deleted: %s", job_id, error)

    def sweep(self, kept: Collection[str]) -> None:
        """Delete what an earlier server wrote and had no time to name, or to delete: all files but
        those of these jobs.
        """
        wanted = {self.of(job_id) for job_id in kept}
        for file in self.directory.iterdir():
            if file.is_file() and file not in wanted:
                file.unlink()
