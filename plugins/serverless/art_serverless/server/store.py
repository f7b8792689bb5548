"""What the server remembers: models, jobs and events in a database; jobs' groups in files."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import attrs

from art_serverless.protocol import Address
from art_serverless.server.database import Database
from art_serverless.server.errors import RefusedError
from art_serverless.server.groups import GroupFiles

State = Literal["queued", "running", "ended", "failed"]


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
    """A training job; `begun` is how often it was, `step_before` the step that its model had when
    it was trained last.
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
        self._db = Database(directory / "serve.sqlite")
        self.groups.sweep([job.id for job in self.unfinished()])

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def add_model(self, address: Address, base_model: str) -> StoredModel:
        """Register a model; sqlite3.IntegrityError when its address is taken."""
        model = StoredModel(
            id=uuid.uuid4().hex, run_id=uuid.uuid4().hex[:12], base_model=base_model,
            **attrs.asdict(address),
        )  # fmt: skip
        values = (*attrs.astuple(model), time.time())
        with self._db.writing() as db:
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
        """Keep a job and its groups; None when a request of that key made it already.

        `digest` is that of the request, by default of these groups. Raises RefusedError 422 for a
        key that made a job of other groups or another config.
        """
        digest = digest or digest_of(config, groups)
        if self._has_made(model_id, key, digest):
            return None
        job = StoredJob(
            id=uuid.uuid4().hex, model_id=model_id, config=dict(config), state="queued",
            step_before=None,
        )  # fmt: skip
        self.groups.keep(job.id, groups)
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
            self._has_made(model_id, key, digest)  # another request of that key was faster
            return None
        return job

    def _has_made(self, model_id: str, key: str | None, digest: str) -> bool:
        query = "select digest from jobs where model_id = ? and key = ?"
        for row in self._db.rows(query, model_id, key):
            if row["digest"] not in (digest, None):  # a job of an earlier server has none
                raise RefusedError(
                    422,
                    f"Idempotency-Key {key!r:.100} came with another body before; take a new key",
                )
            return True
        return False

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
        rows = self._db.rows("select state, count(*) from jobs group by state")
        return {row[0]: row[1] for row in rows}

    def begin(self, job_id: str) -> None:
        """Count that a job is begun; what happens from now on may end the server."""
        with self._db.writing() as db:
            db.execute(
                "update jobs set state = 'running', begun = begun + 1 where id = ?", (job_id,)
            )

    def train(self, job_id: str, step_before: int) -> None:
        """Say that a job trains now, from which step; what an earlier try told is forgotten."""
        with self._db.writing() as db:
            db.execute("delete from events where job_id = ?", (job_id,))
            db.execute("update jobs set step_before = ? where id = ?", (step_before, job_id))

    def costs_told(self, model_id: str) -> dict[str, float]:
        """Return what clients were told that a model cost so far, by leaf."""
        rows = self._db.rows("select costs_told from models where id = ?", model_id)
        return json.loads(rows[0][0]) if rows else {}

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
        with self._db.writing() as db:
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
        with self._db.writing() as db:
            db.execute("delete from events where job_id = ?", (job_id,))
            db.execute("delete from jobs where id = ?", (job_id,))
        self.groups.delete(job_id)

    def tell(self, job_id: str, kind: str, data: Mapping[str, Any]) -> None:
        """Add an event to a job."""
        with self._db.writing() as db:
            _tell(db, job_id, kind, data)

    def events(self, job_id: str, after: int, limit: int) -> list[dict[str, Any]]:
        """Return a job's events after one, as the protocol gives them."""
        query = "select * from events where job_id = ? and number > ? order by number limit ?"
        return [
            {"id": str(row["number"]), "type": row["type"], "data": json.loads(row["data"])}
            for row in self._db.rows(query, job_id, after, limit)
        ]

    def _models(self, where: str, *values: Any) -> Iterator[StoredModel]:
        names = [field.name for field in attrs.fields(StoredModel)]
        for row in self._db.rows("select * from models " + where, *values):  # noqa: S608
            yield StoredModel(**{name: row[name] for name in names})

    def _found_jobs(self, where: str, *values: Any) -> Iterator[StoredJob]:
        for row in self._db.rows("select * from jobs " + where, *values):  # noqa: S608
            yield StoredJob(
                id=row["id"],
                model_id=row["model_id"],
                config=json.loads(row["config"]),
                state=row["state"],
                step_before=row["step_before"],
                begun=row["begun"],
            )


def _tell(db: sqlite3.Connection, job_id: str, kind: str, data: Mapping[str, Any]) -> None:
    db.execute(
        "insert into events (job_id, type, data) values (?,?,?)",
        (job_id, kind, json.dumps(dict(data), allow_nan=False)),
    )


def digest_of(config: Mapping[str, Any], groups: bytes) -> str:
    """Return the digest of a job's request: its options and groups as they were sent."""
    digest = hashlib.sha256(json.dumps(dict(config), sort_keys=True).encode())
    digest.update(groups)
    return digest.hexdigest()
