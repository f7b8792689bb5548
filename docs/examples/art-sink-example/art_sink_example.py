"""Keeps the rows of all runs in one SQLite database: the sink `sqlite` of art-core."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import art_core as art


class SqliteSink:
    """Writes each row into the table `rows`, its metrics as JSON."""

    def __init__(self, path: str | Path) -> None:
        self.path = path

    def open(self, run: art.RunInfo) -> None:
        self.run = f"{run.project}/{run.name}"
        self.db = sqlite3.connect(self.path)
        columns = "run, seq, step, split, at, metrics, primary key (run, seq)"
        self.db.execute(f"create table if not exists rows ({columns})")

    def write(self, rows: Sequence[art.MetricsRow]) -> None:
        values = [
            (self.run, r.seq, r.step, r.split, r.recorded_at.isoformat(), json.dumps(r.metrics))
            for r in rows
        ]
        with self.db:  # all of them or none; a row that comes again takes its own place
            self.db.executemany("insert or replace into rows values (?, ?, ?, ?, ?, ?)", values)

    def close(self, run: art.RunInfo) -> None:
        self.db.close()


def sqlite_sink(path: str | None = None) -> art.SinkSpec:
    place = path or os.environ.get("ART_SQLITE", "runs.sqlite")
    return art.SinkSpec(
        name="sqlite",
        create=lambda: SqliteSink(place),
        summary="rows in a SQLite database",
        options={"path": path} if path else {},
        factory=sqlite_sink,
    )


@art.hookimpl
def art_sinks() -> list[art.SinkSpec]:
    return [sqlite_sink()]
