"""What art-mlflow offers to art-core. MLflow is imported when a run opens."""

from __future__ import annotations

import os

from art_core import Sink, SinkSpec, hookimpl


def mlflow_sink(tracking_uri: str | None = None, experiment: str | None = None) -> SinkSpec:
    """Return an MLflow sink.

    `tracking_uri` is that of `MLFLOW_TRACKING_URI` unless given, else `mlflow.db` beside the
    projects; `experiment` is the model's project unless given.
    """

    def create() -> Sink:
        from art_mlflow.sink import MlflowSink

        return MlflowSink(tracking_uri, experiment)

    return SinkSpec(
        name="mlflow",
        create=create,
        summary="a run on an MLflow server, or in a database of its own",
        default="MLFLOW_TRACKING_URI" in os.environ,
    )


@hookimpl
def art_sinks() -> list[SinkSpec]:
    """Offer the sink; it is a default one where MLFLOW_TRACKING_URI says that MLflow is wanted."""
    return [mlflow_sink()]
