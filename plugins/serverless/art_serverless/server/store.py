"""What the server remembers: models, jobs and events, in SQLite; jobs' groups in files."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import attrs

from art_serverless.protocol import Address
from art_serverless.server.groups import GroupFiles

State = Literal["queued", "running", "ended", "failed"]
_SCHEMA = """
create table if not exists models (
  id text primary key, entity text not null, project text not null, name text not null,
  base_model text not null, run_id text not null, created_at real not null,
  costs_told text not null default '{}',
  unique (entity, project, name)
);
create table if not exists jobs (
  number integer primary key autoincrement, id text unique not null, model_id text not null,
  key text, config text not null, state text not null, step_before integer,
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
    ("models", "costs_told text not null default '{}'"),
)


@attrs.frozen(kw_only=True)
class StoredModel:
    """A registered model."""

    id: str
    entity: str
    project: str
    name: str
    base_model: str
    run_id: str

    @property
    def address(self) -> Address:
        """Whose it is and what it is called."""
        return Address(entity=self.entity, project=self.project, name=self.name)


@attrs.frozen(kw_only=True)
class StoredJob:
    """A training job; `step_before` is the step that its model had when it began to run, `begun`
    how often it did.
    """

    id: str
    model_id: str
    config: dict[str, Any]
    state: State
    step_before: int | None
    begun: int = 0


class Store:
    """The server's memory in a directory. Safe under threads; what a method wrote survives a kill.

    A job is kept whole or not at all: its groups are on disk before its row is.
    """

    def __init__(self, directory: Path) -> None:
        self.groups = GroupFiles(directory / "jobs")
        self._lock = threading.Lock()
        self._db = sqlite3.connect(
            directory / "serve.sqlite", check_same_thread=False, isolation_level=None
        )
        self._db.row_factory = sqlite3.Row
        self._db.execute("pragma journal_mode=wal")
        self._db.executescript(_SCHEMA)
        for table, column in _LATER_COLUMNS:
            with suppress(sqlite3.OperationalError):  # a file of now has it
                self._db.execute(f"alter table {table} add column {column}")
        self.groups.sweep([job.id for job in self.unfinished()])

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._db.close()

    def add_model(self, address: Address, base_model: str) -> StoredModel:
        """Register a model; sqlite3.IntegrityError when its address is taken."""
        model = StoredModel(
            id=uuid.uuid4().hex, run_id=uuid.uuid4().hex[:12], base_model=base_model,
            **attrs.asdict(address),
        )  # fmt: skip
        values = (*attrs.astuple(model), time.time())
        with self._writing() as db:
            db.execute(
                "insert into models (id, entity, project, name, base_model, run_id, created_at)"
                " values (?,?,?,?,?,?,?)",
                values,
            )
        return model

    def model(self, model_id: str) -> StoredModel | None:
        """Return a model by id."""
        return next(self._models("where id = ?", model_id), None)

    def models(self) -> list[StoredModel]:
        """Return all models, by address."""
        return list(self._models("order by entity, project, name"))

    def models_called(
        self, name: str, entity: str | None = None, project: str | None = None
    ) -> list[StoredModel]:
        """Return the models of a name; entity and project narrow it."""
        where = "where name = ? and (? is null or entity = ?) and (? is null or project = ?)"
        return list(self._models(where, name, entity, entity, project, project))

    def delete_model(self, model_id: str) -> None:
        """Forget a model and its jobs."""
        with self._writing() as db:
            db.execute(
                "delete from events where job_id in (select id from jobs where model_id = ?)",
                (model_id,),
            )
            db.execute("delete from jobs where model_id = ?", (model_id,))
            db.execute("delete from models where id = ?", (model_id,))

    def add_job(
        self, model_id: str, config: Mapping[str, Any], groups: bytes, key: str | None
    ) -> StoredJob:
        """Keep a job and its groups; a key that was seen before returns the job that it made."""
        found = self.job_of(model_id, key) if key else None
        if found is not None:
            return found
        job = StoredJob(
            id=uuid.uuid4().hex, model_id=model_id, config=dict(config), state="queued",
            step_before=None,
        )  # fmt: skip
        self.groups.keep(job.id, groups)
        values = (job.id, model_id, key, json.dumps(job.config), job.state, time.time())
        with self._writing() as db:
            db.execute(
                "insert into jobs (id, model_id, key, config, state, submitted_at)"
                " values (?,?,?,?,?,?)",
                values,
            )
        return job

    def job(self, job_id: str) -> StoredJob | None:
        """Return a job by id."""
        return next(self._found_jobs("where id = ?", job_id), None)

    def job_of(self, model_id: str, key: str) -> StoredJob | None:
        """Return the job that a request of that key made."""
        return next(self._found_jobs("where model_id = ? and key = ?", model_id, key), None)

    def unfinished(self) -> list[StoredJob]:
        """Return the jobs that wait or were cut off, in the order in which they came."""
        return list(self._found_jobs("where state in ('queued', 'running') order by number"))

    def job_counts(self) -> dict[str, int]:
        """Return how many jobs are in which state."""
        with self._lock:
            rows = self._db.execute("select state, count(*) from jobs group by state").fetchall()
        return {row[0]: row[1] for row in rows}

    def begin(self, job_id: str, step_before: int) -> None:
        """Say that a job runs now, from which step; what an earlier try told is forgotten."""
        with self._writing() as db:
            db.execute("delete from events where job_id = ?", (job_id,))
            db.execute(
                "update jobs set state = 'running', step_before = ?, begun = begun + 1"
                " where id = ?",
                (step_before, job_id),
            )

    def costs_told(self, model_id: str) -> dict[str, float]:
        """Return what clients were told that a model cost so far, by leaf."""
        with self._lock:
            found = self._db.execute("select costs_told from models where id = ?", (model_id,))
            row = found.fetchone()
        return json.loads(row[0]) if row else {}

    def end(
        self,
        job_id: str,
        state: State,
        events: Iterable[tuple[str, Mapping[str, Any]]],
        costs_told: Mapping[str, float] | None = None,
    ) -> None:
        """Say how a job ended, with its last events and what clients know of costs by it, at once;
        its groups are deleted.
        """
        with self._writing() as db:
            db.execute("update jobs set state = ? where id = ?", (state, job_id))
            if costs_told is not None:
                db.execute(
                    "update models set costs_told = ?"
                    " where id = (select model_id from jobs where id = ?)",
                    (json.dumps(dict(costs_told)), job_id),
                )
            for kind, data in events:
                _tell(db, job_id, kind, data)
        self.groups.delete(job_id)

    def forget(self, job_id: str) -> None:
        """Forget a job whose model is gone."""
        with self._writing() as db:
            db.execute("delete from events where job_id = ?", (job_id,))
            db.execute("delete from jobs where id = ?", (job_id,))
        self.groups.delete(job_id)

    def tell(self, job_id: str, kind: str, data: Mapping[str, Any]) -> None:
        """Add an event to a job."""
        with self._writing() as db:
            _tell(db, job_id, kind, data)

    def events(self, job_id: str, after: int, limit: int) -> list[dict[str, Any]]:
        """Return a job's events after one, as the protocol gives them."""
        query = "select * from events where job_id = ? and number > ? order by number limit ?"
        with self._lock:
            rows = self._db.execute(query, (job_id, after, limit)).fetchall()
        return [
            {"id": str(row["number"]), "type": row["type"], "data": json.loads(row["data"])}
            for row in rows
        ]

    def _models(self, where: str, *values: Any) -> Iterator[StoredModel]:
        names = [field.name for field in attrs.fields(StoredModel)]
        with self._lock:
            rows = self._db.execute("select * from models " + where, values).fetchall()  # noqa: S608
        for row in rows:
            yield StoredModel(**{name: row[name] for name in names})

    def _found_jobs(self, where: str, *values: Any) -> Iterator[StoredJob]:
        with self._lock:
            rows = self._db.execute("select * from jobs " + where, values).fetchall()  # noqa: S608
        for row in rows:
            yield StoredJob(
                id=row["id"],
                model_id=row["model_id"],
                config=json.loads(row["config"]),
                state=row["state"],
                step_before=row["step_before"],
                begun=row["begun"],
            )

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("begin immediate")
            try:
                yield self._db
            except BaseException:
                self._db.execute("rollback")
                raise
            self._db.execute("commit")


def _tell(db: sqlite3.Connection, job_id: str, kind: str, data: Mapping[str, Any]) -> None:
    db.execute(
        "insert into events (job_id, type, data) values (?,?,?)",
        (job_id, kind, json.dumps(dict(data), allow_nan=False)),
    )
