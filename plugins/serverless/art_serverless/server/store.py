"""The server's state on disk: models, jobs and events in SQLite, the groups of jobs in files."""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
import threading
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import attrs

from art_core.base.files import replace_bytes
from art_core.endpoint.errors import RequestError
from art_serverless.protocol import Address

log = logging.getLogger("art_serverless")

State = Literal["queued", "running", "ended", "failed"]

_SCHEMA = """
create table if not exists models (
  id text primary key, entity text not null, project text not null, name text not null,
  base_model text not null, run_id text not null, created_at real not null,
  costs_told text not null default '{}', owner text not null default '',
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
    ("models", "owner text not null default ''"),
)


@attrs.frozen(kw_only=True)
class StoredModel:
    """A registered model. `owner` is the digest of the key that pays for it, if it has a budget."""

    id: str
    entity: str
    project: str
    name: str
    base_model: str
    run_id: str
    owner: str = ""

    def shown(self) -> dict[str, str]:
        """Return what clients get."""
        return attrs.asdict(self, filter=attrs.filters.exclude("owner"))

    @property
    def address(self) -> Address:
        """The model's owner, project and name."""
        return Address(entity=self.entity, project=self.project, name=self.name)


@attrs.frozen(kw_only=True)
class StoredJob:
    """A training job. `attempts` counts its starts; `step_before` is the model's step before the
    last training.
    """

    id: str
    model_id: str
    config: dict[str, Any]
    state: State
    step_before: int | None
    attempts: int = 0


class Store:
    """The server's state in a directory. Safe under threads; a kill loses nothing that a method
    wrote.

    The groups of a job are written before its row, so a job that exists is complete.
    """

    def __init__(self, directory: Path) -> None:
        self.groups = GroupFiles(directory / "jobs")
        self._db = Database(directory / "serve.sqlite")
        self.groups.sweep([job.id for job in self.unfinished()])

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def add_model(self, address: Address, base_model: str, owner: str = "") -> StoredModel:
        """Register a model; sqlite3.IntegrityError if its address is taken."""
        model = StoredModel(
            id=uuid.uuid4().hex, run_id=uuid.uuid4().hex[:12], base_model=base_model,
            owner=owner, **attrs.asdict(address),
        )  # fmt: skip
        values = (*attrs.astuple(model), time.time())
        with self._db.writing() as db:
            db.execute(
                "insert into models"
                " (id, entity, project, name, base_model, run_id, owner, created_at)"
                " values (?,?,?,?,?,?,?,?)",
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
        """Return the models with a name, of an entity and a project if they are given."""
        where = "where name = ? and (? is null or entity = ?) and (? is null or project = ?)"
        return list(self._models(where, name, entity, entity, project, project))

    def delete_model(self, model_id: str) -> None:
        """Delete a model and its jobs."""
        with self._db.writing() as db:
            db.execute(
                "delete from events where job_id in (select id from jobs where model_id = ?)",
                (model_id,),
            )
            db.execute("delete from jobs where model_id = ?", (model_id,))
            db.execute("delete from models where id = ?", (model_id,))

    def add_job(
        self,
        model_id: str,
        config: Mapping[str, Any],
        groups: bytes,
        key: str | None,
        digest: str = "",
    ) -> StoredJob | None:
        """Save a job and its groups; return None if a request with that key made it already.

        `digest` is that of the request, by default that of these groups. Raises RequestError (422)
        for a key that made a job with other groups or another config.
        """
        digest = digest or digest_of(config, groups)
        if self._exists(model_id, key, digest):
            return None
        job = StoredJob(
            id=uuid.uuid4().hex, model_id=model_id, config=dict(config), state="queued",
            step_before=None,
        )  # fmt: skip
        self.groups.save(job.id, groups)
        values = (job.id, model_id, key, digest, json.dumps(job.config), job.state, time.time())
        try:
            with self._db.writing() as db:
                db.execute(
                    "insert into jobs (id, model_id, key, digest, config, state, submitted_at)"
                    " values (?,?,?,?,?,?,?)",
                    values,
                )
        except BaseException as error:
            self.groups.delete(job.id)
            if not isinstance(error, sqlite3.IntegrityError):
                raise
            self._exists(model_id, key, digest)  # another request with that key was faster
            return None
        return job

    def _exists(self, model_id: str, key: str | None, digest: str) -> bool:
        query = "select digest from jobs where model_id = ? and key = ?"
        for row in self._db.rows(query, model_id, key):
            if row["digest"] not in (digest, None):  # a job of an earlier version has none
                raise RequestError(
                    422,
                    f"Idempotency-Key {key!r:.100} came with another body before; take a new key",
                )
            return True
        return False

    def job(self, job_id: str) -> StoredJob | None:
        """Return a job by id."""
        return next(self._jobs("where id = ?", job_id), None)

    def job_of(self, model_id: str, key: str) -> StoredJob | None:
        """Return the job that a request with that key made."""
        return next(self._jobs("where model_id = ? and key = ?", model_id, key), None)

    def unfinished(self) -> list[StoredJob]:
        """Return the jobs that are queued or were interrupted, oldest first."""
        return list(self._jobs("where state in ('queued', 'running') order by number"))

    def job_counts(self) -> dict[str, int]:
        """Return the number of jobs in each state."""
        rows = self._db.rows("select state, count(*) from jobs group by state")
        return {row[0]: row[1] for row in rows}

    def count_attempt(self, job_id: str) -> None:
        """Mark a job as running and count the attempt; what follows may end the server."""
        with self._db.writing() as db:
            db.execute(
                "update jobs set state = 'running', begun = begun + 1 where id = ?", (job_id,)
            )

    def begin_training(self, job_id: str, step_before: int) -> None:
        """Record the step from which a job trains now; delete the events of earlier attempts."""
        with self._db.writing() as db:
            db.execute("delete from events where job_id = ?", (job_id,))
            db.execute("update jobs set step_before = ? where id = ?", (step_before, job_id))

    def reported_costs(self, model_id: str) -> dict[str, float]:
        """Return the costs of a model that clients were sent so far, by leaf."""
        rows = self._db.rows("select costs_told from models where id = ?", model_id)
        return json.loads(rows[0][0]) if rows else {}

    def end(
        self,
        job_id: str,
        state: State,
        events: Iterable[tuple[str, Mapping[str, Any]]],
        reported_costs: Mapping[str, float] | None = None,
    ) -> None:
        """Record the end of a job, its last events and the costs that clients now know of, in one
        transaction; delete its groups.
        """
        with self._db.writing() as db:
            db.execute("update jobs set state = ? where id = ?", (state, job_id))
            if reported_costs is not None:
                db.execute(
                    "update models set costs_told = ?"
                    " where id = (select model_id from jobs where id = ?)",
                    (json.dumps(dict(reported_costs)), job_id),
                )
            for kind, data in events:
                _insert_event(db, job_id, kind, data)
        self.groups.delete(job_id)

    def delete_job(self, job_id: str) -> None:
        """Delete a job whose model was deleted."""
        with self._db.writing() as db:
            db.execute("delete from events where job_id = ?", (job_id,))
            db.execute("delete from jobs where id = ?", (job_id,))
        self.groups.delete(job_id)

    def add_event(self, job_id: str, kind: str, data: Mapping[str, Any]) -> None:
        """Add an event to a job."""
        with self._db.writing() as db:
            _insert_event(db, job_id, kind, data)

    def events(self, job_id: str, after: int, limit: int) -> list[dict[str, Any]]:
        """Return a job's events after one, in the form of the protocol."""
        query = "select * from events where job_id = ? and number > ? order by number limit ?"
        return [
            {"id": str(row["number"]), "type": row["type"], "data": json.loads(row["data"])}
            for row in self._db.rows(query, job_id, after, limit)
        ]

    def _models(self, where: str, *values: Any) -> Iterator[StoredModel]:
        names = [field.name for field in attrs.fields(StoredModel)]
        for row in self._db.rows("select * from models " + where, *values):  # noqa: S608
            yield StoredModel(**{name: row[name] for name in names})

    def _jobs(self, where: str, *values: Any) -> Iterator[StoredJob]:
        for row in self._db.rows("select * from jobs " + where, *values):  # noqa: S608
            yield StoredJob(
                id=row["id"],
                model_id=row["model_id"],
                config=json.loads(row["config"]),
                state=row["state"],
                step_before=row["step_before"],
                attempts=row["begun"],
            )


def _insert_event(db: sqlite3.Connection, job_id: str, kind: str, data: Mapping[str, Any]) -> None:
    db.execute(
        "insert into events (job_id, type, data) values (?,?,?)",
        (job_id, kind, json.dumps(dict(data), allow_nan=False)),
    )


def digest_of(config: Mapping[str, Any], groups: bytes) -> str:
    """Return the digest of a job's request: its options and its groups as they were sent."""
    digest = hashlib.sha256(json.dumps(dict(config), sort_keys=True).encode())
    digest.update(groups)
    return digest.hexdigest()


class Database:
    """A SQLite file with transactions that are safe under threads and survive a kill."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        self._db.execute("pragma journal_mode=wal")
        self._db.executescript(_SCHEMA)
        for table, column in _LATER_COLUMNS:
            with suppress(sqlite3.OperationalError):  # a newer file has the column
                self._db.execute(f"alter table {table} add column {column}")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """Return the rows of a query."""
        with self._lock:
            return self._db.execute(query, values).fetchall()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Commit all that the block writes, or nothing of it if the block raises."""
        with self._lock:
            self._db.execute("begin immediate")
            try:
                yield self._db
                self._db.execute("commit")
            except BaseException:
                if self._db.in_transaction:  # a full disk may have ended it
                    self._db.execute("rollback")
                raise


@attrs.frozen
class GroupFiles:
    """The groups of unfinished jobs: `<directory>/<job>.json` each, complete or absent."""

    directory: Path

    def __attrs_post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)

    def of(self, job_id: str) -> Path:
        """Return the path of a job's groups."""
        return self.directory / f"{job_id}.json"

    def save(self, job_id: str, groups: bytes) -> None:
        """Write a job's groups, so that they survive a kill. A failure leaves no file."""
        replace_bytes(self.of(job_id), groups)

    def delete(self, job_id: str) -> None:
        """Delete a job's groups if they exist. On failure the next server deletes them."""
        try:
            self.of(job_id).unlink(missing_ok=True)
        except OSError as error:
            log.warning("the groups of job %s could not be deleted: %s", job_id, error)

    def sweep(self, job_ids: Collection[str]) -> None:
        """Delete all files but those of the given jobs: an earlier server may have left others."""
        wanted = {self.of(job_id) for job_id in job_ids}
        for file in self.directory.iterdir():
            if file.is_file() and file not in wanted:
                file.unlink()
