"""Rows as metrics of an MLflow run. MLflow drops a point that comes again, so repeats are safe."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import attrs
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from art_core import MetricsRow, RunInfo, SinkError
from art_core.files import read_json, replace_json
from art_mlflow.keys import LONGEST, to_mlflow

_BATCH, _PARAMS = 1_000, 100
_LONGEST_VALUE = 6_000
_ENDS = {"finished": "FINISHED", "interrupted": "KILLED", "killed": "KILLED"}


@attrs.define(eq=False)
class MlflowSink:
    """Logs each metric at the row's step and time, in batches of 1,000, MLflow's most."""

    tracking_uri: str | None = None
    experiment: str | None = None
    _client: MlflowClient | None = None
    _run_id: str = ""

    def open(self, run: RunInfo) -> None:
        """Go on with the MLflow run that `sinks/mlflow.json` names, or make one."""
        beside = f"sqlite:///{run.run_dir.parents[2].resolve() / 'mlflow.db'}"
        uri = self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or beside
        self._client = client = MlflowClient(uri)
        kept = run.run_dir / "sinks" / f"{run.sink or 'mlflow'}.json"
        said = read_json(kept)
        if not said.get("run_id"):
            name = self.experiment or run.project
            found = client.get_experiment_by_name(name)
            experiment = found.experiment_id if found else client.create_experiment(name)
            made = client.create_run(experiment, run_name=run.name).info.run_id
            # Kept before anything else can fail: a second try goes on with this run.
            said = {"run_id": made, "described": False}
            replace_json(kept, said)
        self._run_id = said["run_id"]
        try:
            client.update_run(self._run_id, status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise SinkError(
                f"MLflow at {uri} has no run {self._run_id}, which {kept} names",
                "Use the server that it was made on, or delete that file for a new MLflow run.",
            ) from error
        if not said.get("described", True):
            params = params_of(run)
            for start in range(0, len(params), _PARAMS):
                client.log_batch(self._run_id, params=params[start : start + _PARAMS])
            replace_json(kept, {"run_id": self._run_id})

    def write(self, rows: Sequence[MetricsRow]) -> None:
        """Log rows and wait until MLflow has them."""
        assert self._client is not None
        metrics = [metric for row in rows for metric in points(row)]
        for start in range(0, len(metrics), _BATCH):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + _BATCH])

    def close(self, run: RunInfo) -> None:
        """Say how the run ended, if it did: `art sync` may come while it goes on."""
        assert self._client is not None
        if run.status != "running":
            self._client.set_terminated(self._run_id, status=_ENDS.get(run.status, "FAILED"))


def params_of(run: RunInfo) -> list[Param]:
    """Return the run's config as MLflow's parameters: names of 250 characters at most, each once,
    values of 6,000.
    """
    about = {**run.config, "base_model": run.base_model}
    named = {to_mlflow(str(k))[:LONGEST]: str(v)[:_LONGEST_VALUE] for k, v in about.items()}
    return [Param(name, value) for name, value in named.items()]


def points(row: MetricsRow) -> Iterator[Metric]:
    """Yield a row's metrics; a key too long for MLflow, over 250 characters, is left out."""
    time = int(row.recorded_at.timestamp() * 1_000)
    for key, value in row.metrics.items():
        if len(named := to_mlflow(key)) <= LONGEST:
            yield Metric(named, value, time, row.step)
