"""The record of a job under way, by which a new process finds the job again."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import attrs

from art_core.base.files import read_json, replace_json

FILE = "serverless.json"


@attrs.frozen(kw_only=True)
class Pending:
    """A training step that was sent: the request's `key`, the number of the step, and the job's id
    once the service has answered.
    """

    key: str
    model_id: str
    step: int
    job_id: str | None = None

    @classmethod
    def new(cls, model_id: str, step: int) -> Pending:
        """Return a request with a key of its own, about to be sent."""
        return cls(key=secrets.token_hex(16), model_id=model_id, step=step)


@attrs.frozen
class Journal:
    """A file in the run's directory. A run has at most one step under way."""

    run_dir: Path

    def read(self) -> Pending | None:
        """Return the step under way, if any."""
        found: dict[str, Any] = read_json(self.run_dir / FILE)
        return Pending(**found["pending"]) if found.get("pending") else None

    def write(self, pending: Pending | None) -> None:
        """Save the step under way; None when it is over."""
        saved = None if pending is None else attrs.asdict(pending)
        replace_json(self.run_dir / FILE, {"pending": saved})
