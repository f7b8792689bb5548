"""Rows as metrics of an MLflow run. MLflow drops a point that comes again, so repeats are safe."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import attrs
from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from art_core import MetricsRow, RunInfo
from art_core.files import read_json, replace_json
from art_mlflow.keys import LONGEST, to_mlflow

_BATCH = 1_000


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
        kept = run.run_dir / "sinks" / "mlflow.json"
        self._run_id = read_json(kept).get("run_id", "")
        if not self._run_id:
            name = self.experiment or run.project
            found = client.get_experiment_by_name(name)
            experiment = found.experiment_id if found else client.create_experiment(name)
            self._run_id = client.create_run(experiment, run_name=run.name).info.run_id
            about = {**run.config, "base_model": run.base_model}
            params = [Param(to_mlflow(k)[:LONGEST], str(v)[:6_000]) for k, v in about.items()]
            client.log_batch(self._run_id, params=params[:100])
            replace_json(kept, {"run_id": self._run_id})
        client.update_run(self._run_id, status="RUNNING")

    def write(self, rows: Sequence[MetricsRow]) -> None:
        """Log rows and wait until MLflow has them."""
        assert self._client is not None
        metrics = [metric for row in rows for metric in points(row)]
        for start in range(0, len(metrics), _BATCH):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + _BATCH])

    def close(self, run: RunInfo) -> None:
        """Say how the run ended."""
        assert self._client is not None
        status = "FINISHED" if run.status == "finished" else "FAILED"
        self._client.set_terminated(self._run_id, status=status)


def points(row: MetricsRow) -> Iterator[Metric]:
    """Yield a row's metrics; a key too long for MLflow, over 250 characters, is left out."""
    time = int(row.recorded_at.timestamp() * 1_000)
    for key, value in row.metrics.items():
        if len(named := to_mlflow(key)) <= LONGEST:
            yield Metric(named, value, time, row.step)
