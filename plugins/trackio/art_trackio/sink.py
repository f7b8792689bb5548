"""The sink of a Trackio run. Rows are written to its database at once, none wait in memory."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

import attrs
from trackio.sqlite_storage import SQLiteStorage
from trackio.utils import canonical_project_name

from art_core import MetricsRow, RunInfo


@attrs.define(eq=False)
class TrackioSink:
    """Writes each row with its seq as Trackio's log id, so repeats are dropped."""

    project: str | None = None
    _run: RunInfo | None = None
    _furthest: MetricsRow | None = None

    def open(self, run: RunInfo) -> None:
        """Store the run; Trackio makes its database with the first rows."""
        self._run = run

    def write(self, rows: Sequence[MetricsRow]) -> None:
        """Write rows in one transaction."""
        assert self._run is not None
        run, own_id = self._run, run_id(self._run)
        about = {"project": run.project, "name": run.name, "base_model": run.base_model}
        SQLiteStorage.bulk_log(
            project=project_name(self.project or run.project),
            run=run.name,
            run_id=own_id,
            metrics_list=[record(self._shown(row)) for row in rows],
            steps=[row.step for row in rows],
            timestamps=[row.recorded_at.isoformat() for row in rows],
            log_ids=[f"{own_id}-{row.seq}" if row.seq else None for row in rows],
            config=json.loads(json.dumps({**run.config, "art": about}, default=str)),
        )

    def close(self, run: RunInfo) -> None:
        """Nothing to finish."""

    def _shown(self, row: MetricsRow) -> MetricsRow:
        if row.is_behind(self._furthest):
            return row.without_totals()
        self._furthest = row
        return row


def project_name(name: str) -> str:
    """Return a project's name in Trackio: its own, or one with a short hash of it.

    Trackio drops other characters than letters, digits, `-` and `_`, and so would join projects.
    """
    try:
        SQLiteStorage.validate_project_name(name)
        reserved = False
    except ValueError:
        reserved = True
    if canonical_project_name(name) == name and not reserved:
        return name
    mark = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"p-{re.sub(r'[^0-9A-Za-z_-]+', '-', name).strip('-')}-{mark}"


def run_id(run: RunInfo) -> str:
    """Return the run's id in Trackio: that of its directory, so that a resume goes on with it."""
    return hashlib.sha256(str(run.run_dir.resolve()).encode()).hexdigest()[:32]


def record(row: MetricsRow) -> dict[str, Any]:
    """Return the values of a row for Trackio."""
    return {**row.metrics, "seq": row.seq, "attempt": row.attempt, "split": row.split}
