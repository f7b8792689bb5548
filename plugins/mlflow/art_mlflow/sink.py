"""Rows as metrics of an MLflow run. MLflow drops a point that comes again, so repeats are safe."""

from __future__ import annotations

import os
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
from art_mlflow.keys import LONGEST, to_mlflow

_BATCH, _PARAMS = 1_000, 100
_LONGEST_VALUE = 6_000
_ENDS = {"finished": "FINISHED", "interrupted": "KILLED", "killed": "KILLED"}


@attrs.define(eq=False)
class MlflowSink:
    """Logs the run's current line (`CurrentLine`): each metric at its step and the row's time, in
    batches of 1,000, MLflow's most.
    """

    tracking_uri: str | None = None
    experiment: str | None = None
    _client: MlflowClient | None = None
    _run: RunInfo | None = None
    _kept: dict[str, Any] = attrs.field(factory=dict)
    _line: CurrentLine | None = None

    def open(self, run: RunInfo) -> None:
        """Go on with the MLflow run that `sinks/<name>.json` names, or make one."""
        beside = f"sqlite:///{run.run_dir.parents[2].resolve() / 'mlflow.db'}"
        uri = self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or beside
        self._client, self._run = MlflowClient(uri), run
        self._line = CurrentLine(run)
        self._kept = read_json(self._file)
        if not self._kept.get("run_id"):
            self._make(attempt=1)
        try:
            self._client.update_run(self._kept["run_id"], status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise SinkError(
                f"MLflow at {uri} has no run {self._kept['run_id']}, which {self._file} names",
                "Use the server that it was made on, or delete that file for a new MLflow run.",
            ) from error
        self._describe()

    def write(self, rows: Sequence[MetricsRow]) -> None:
        """Log rows and wait until MLflow has them."""
        assert self._line is not None
        waiting: list[Metric] = []
        for row in rows:
            if 0 < row.attempt < self._kept.get("attempt", 1):
                continue  # it comes again: the newest attempt's run has what counts of it
            change = self._line.change(row)
            if change.begins_at is not None and row.attempt > self._kept.get("attempt", 1):
                self._log(waiting)
                waiting = []
                self._resume(row, change)
            waiting.extend(changed(row, change))
        self._log(waiting)

    def close(self, run: RunInfo) -> None:
        """Say how the run ended, if it did: `art sync` may come while it goes on."""
        assert self._client is not None
        if run.status != "running":
            status = _ENDS.get(run.status, "FAILED")
            self._client.set_terminated(self._kept["run_id"], status=status)

    @property
    def _file(self) -> Path:
        assert self._run is not None
        return self._run.run_dir / "sinks" / f"{self._run.sink or 'mlflow'}.json"

    def _resume(self, row: MetricsRow, change: Change) -> None:
        """Go on with an attempt whose first trained row this is: in another MLflow run, which gets
        the values that still count, if the attempt repeats steps.
        """
        assert self._client is not None
        old = self._kept["run_id"]
        if change.line is None:
            self._keep({**self._kept, "attempt": row.attempt})
            self._client.set_tag(old, "art.attempt", str(row.attempt))
            return
        self._make(attempt=row.attempt, replaces=old)
        self._describe()
        times = change.line.times()
        self._log([m for s, v in change.line.values().items() for m in points(s, v, times[s])])
        # Kept at last: an attempt that failed before is tried again, in a run of its own.
        self._keep(self._kept)
        self._client.set_tag(old, "art.replaced_by", self._kept["run_id"])
        self._client.set_terminated(old, status="KILLED")

    def _make(self, attempt: int, replaces: str | None = None) -> None:
        assert self._run is not None and self._client is not None
        client, name = self._client, self.experiment or self._run.project
        found = client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else client.create_experiment(name)
        tags = {"art.attempt": str(attempt)} | ({"art.replaces": replaces} if replaces else {})
        made = client.create_run(experiment, run_name=self._run.name, tags=tags).info.run_id
        self._kept = {"run_id": made, "attempt": attempt, "described": False}
        if replaces is None:
            # Kept before anything else can fail: a second try goes on with this run.
            self._keep(self._kept)

    def _describe(self) -> None:
        """Log the run's parameters, once."""
        assert self._run is not None and self._client is not None
        if self._kept.get("described", True):
            return
        params = params_of(self._run)
        for start in range(0, len(params), _PARAMS):
            self._client.log_batch(self._kept["run_id"], params=params[start : start + _PARAMS])
        self._kept = {**self._kept, "described": True}
        if self._kept["attempt"] == 1:
            self._keep(self._kept)

    def _keep(self, kept: dict[str, Any]) -> None:
        self._kept = kept
        replace_json(self._file, kept)

    def _log(self, metrics: Sequence[Metric]) -> None:
        assert self._client is not None
        for start in range(0, len(metrics), _BATCH):
            batch = metrics[start : start + _BATCH]
            self._client.log_batch(self._kept["run_id"], metrics=batch)


def params_of(run: RunInfo) -> list[Param]:
    """Return the run's config as MLflow's parameters: names of 250 characters at most, each once,
    values of 6,000.
    """
    about = {**run.config, "base_model": run.base_model}
    named = {to_mlflow(str(k))[:LONGEST]: str(v)[:_LONGEST_VALUE] for k, v in about.items()}
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
        if len(named := to_mlflow(key)) <= LONGEST:
            yield Metric(named, value, time, step)
