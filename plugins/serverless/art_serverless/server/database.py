"""The SQLite file behind the store: its tables, and transactions that are safe under threads."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_SCHEMA = """
create table if not exists models (
  id text primary key, entity text not null, project text not null, name text not null,
  base_model text not null, run_id text not null, created_at real not null,
  costs_told text not null default '{}',
  unique (entity, project, name)
);
create table if not exists jobs (
  number integer primary key autoincrement, id text unique not null, model_id text not null,
  key text, digest text, config text not null, state text not null, step_before integer,
  submitted_at real not null, begun integer not null default 0,
  unique (model_id, key)
);
create table if not exists events (
  number integer primary key autoincrement, job_id text not null, type text not null,
  data text not null
);
create index if not exists events_of_a_job on events (job_id, number);
"""

_LATER_COLUMNS = (
    ("jobs", "begun integer not null default 0"),
    ("jobs", "digest text"),
    ("models", "costs_told text not null default '{}'"),
)


class Database:
    """One file; what a block of `writing` wrote survives a kill once the block is left."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        self._db.execute("pragma journal_mode=wal")
        self._db.executescript(_SCHEMA)
        for table, column in _LATER_COLUMNS:
            with suppress(sqlite3.OperationalError):  # a file of now has it
                self._db.execute(f"alter table {table} add column {column}")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """Return what a query finds."""
        with self._lock:
            return self._db.execute(query, values).fetchall()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Write all that the block does, or nothing of it."""
        with self._lock:
            self._db.execute("begin immediate")
            try:
                yield self._db
                self._db.execute("commit")
            except BaseException:
                if self._db.in_transaction:  # a full disk may have ended it
                    self._db.execute("rollback")
                raise
