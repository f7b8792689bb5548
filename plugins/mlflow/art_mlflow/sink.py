"""The sink of an MLflow run. MLflow drops a repeated point, so rows may be sent again."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import attrs
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from art_core import Change, CurrentLine, MetricsRow, RunInfo, SinkError
from art_core.base.files import read_json, replace_json

MAX_KEY = 250
_REFUSED = re.compile(r"[^\w/. -]|(?<![^/])\.{1,2}(?![^/])")
_ESCAPED = re.compile(":([0-9a-f]+):")


def to_mlflow(key: str) -> str:
    """Return a key with `:<hex code point>:` for each character that MLflow refuses there, and for
    colons.
    """
    return _REFUSED.sub(lambda found: "".join(f":{ord(c):x}:" for c in found[0]), key)


def from_mlflow(key: str) -> str:
    """Return the key that `to_mlflow` was given."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), key)


_BATCH, _PARAMS = 1_000, 100
_MAX_VALUE = 6_000
_ENDS = {
    "finished": "FINISHED",
    "interrupted": "KILLED",
    "killed": "KILLED",
    "out of budget": "KILLED",
}


@attrs.define(eq=False)
class MlflowSink:
    """Logs the run's current line (`CurrentLine`): each metric at its step and the row's time, in
    batches of 1,000, MLflow's maximum.
    """

    tracking_uri: str | None = None
    experiment: str | None = None
    _client: MlflowClient | None = None
    _run: RunInfo | None = None
    _stored: dict[str, Any] = attrs.field(factory=dict)
    _line: CurrentLine | None = None

    def open(self, run: RunInfo) -> None:
        """Continue the MLflow run that `sinks/<name>.json` names, or make one."""
        beside = f"sqlite:///{run.run_dir.parents[2].resolve() / 'mlflow.db'}"
        uri = self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or beside
        self._client, self._run = MlflowClient(uri), run
        self._line = CurrentLine(run)
        self._stored = read_json(self._file)
        if not self._stored.get("run_id"):
            self._make(attempt=1)
        try:
            self._client.update_run(self._stored["run_id"], status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise SinkError(
                f"MLflow at {uri} has no run {self._stored['run_id']}, which {self._file} names",
                "Use the server that it was made on, or delete that file for a new MLflow run.",
            ) from error
        self._describe()

    def write(self, rows: Sequence[MetricsRow]) -> None:
        """Log rows and wait until MLflow has them."""
        assert self._line is not None
        waiting: list[Metric] = []
        for row in rows:
            if 0 < row.attempt < self._stored.get("attempt", 1):
                continue  # a repeat: the newest attempt's run has the values that count
            change = self._line.change(row)
            if change.begins_at is not None and row.attempt > self._stored.get("attempt", 1):
                self._log(waiting)
                waiting = []
                self._resume(row, change)
            waiting.extend(changed(row, change))
        self._log(waiting)

    def close(self, run: RunInfo) -> None:
        """Set the status of a run that has ended; `art sync` also closes runs that go on."""
        assert self._client is not None
        if run.status != "running":
            status = _ENDS.get(run.status, "FAILED")
            self._client.set_terminated(self._stored["run_id"], status=status)

    @property
    def _file(self) -> Path:
        assert self._run is not None
        return self._run.run_dir / "sinks" / f"{self._run.sink or 'mlflow'}.json"

    def _resume(self, row: MetricsRow, change: Change) -> None:
        """Begin an attempt at its first trained row. If it repeats steps, its rows go to another
        MLflow run, which gets the values that still count.
        """
        assert self._client is not None
        old = self._stored["run_id"]
        if change.line is None:
            self._store({**self._stored, "attempt": row.attempt})
            self._client.set_tag(old, "art.attempt", str(row.attempt))
            return
        self._make(attempt=row.attempt, replaces=old)
        self._describe()
        times = change.line.times()
        self._log([m for s, v in change.line.values().items() for m in points(s, v, times[s])])
        # Stored last: an attempt that failed before is tried again in another run.
        self._store(self._stored)
        self._client.set_tag(old, "art.replaced_by", self._stored["run_id"])
        self._client.set_terminated(old, status="KILLED")

    def _make(self, attempt: int, replaces: str | None = None) -> None:
        assert self._run is not None and self._client is not None
        client, name = self._client, self.experiment or self._run.project
        found = client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else client.create_experiment(name)
        tags = {"art.attempt": str(attempt)} | ({"art.replaces": replaces} if replaces else {})
        run_id = client.create_run(experiment, run_name=self._run.name, tags=tags).info.run_id
        self._stored = {"run_id": run_id, "attempt": attempt, "described": False}
        if replaces is None:
            # Stored before anything else can fail: a second try continues this run.
            self._store(self._stored)

    def _describe(self) -> None:
        """Log the run's parameters, once."""
        assert self._run is not None and self._client is not None
        if self._stored.get("described", True):
            return
        params = params_of(self._run)
        for start in range(0, len(params), _PARAMS):
            self._client.log_batch(self._stored["run_id"], params=params[start : start + _PARAMS])
        self._stored = {**self._stored, "described": True}
        if self._stored["attempt"] == 1:
            self._store(self._stored)

    def _store(self, stored: dict[str, Any]) -> None:
        self._stored = stored
        replace_json(self._file, stored)

    def _log(self, metrics: Sequence[Metric]) -> None:
        assert self._client is not None
        for start in range(0, len(metrics), _BATCH):
            batch = metrics[start : start + _BATCH]
            self._client.log_batch(self._stored["run_id"], metrics=batch)


def params_of(run: RunInfo) -> list[Param]:
    """Return the run's config as MLflow's parameters: names of 250 characters at most, each once,
    values of 6,000.
    """
    about = {**run.config, "base_model": run.base_model}
    named = {to_mlflow(str(k))[:MAX_KEY]: str(v)[:_MAX_VALUE] for k, v in about.items()}
    return [Param(name, value) for name, value in named.items()]


def changed(row: MetricsRow, change: Change) -> Iterator[Metric]:
    """Yield what a row changed."""
    times = change.line.times() if change.line else {}
    for step, values in change.values.items():
        yield from points(step, values, times.get(step, row.recorded_at))


def points(step: int, values: Mapping[str, float], at: datetime) -> Iterator[Metric]:
    """Yield the metrics of a step; a key too long for MLflow, over 250 characters, is left out."""
    time = int(at.timestamp() * 1_000)
    for key, value in values.items():
        if len(named := to_mlflow(key)) <= MAX_KEY:
            yield Metric(named, value, time, step)
