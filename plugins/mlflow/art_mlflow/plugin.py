"""The hook of art-mlflow. MLflow is imported when a run opens."""

from __future__ import annotations

import os
from pathlib import Path

from art_core import Sink, SinkSpec, hookimpl


def mlflow_sink(tracking_uri: str | None = None, experiment: str | None = None) -> SinkSpec:
    """Return an MLflow sink.

    `tracking_uri` is that of `MLFLOW_TRACKING_URI` unless given, else `mlflow.db` beside the
    projects; `experiment` is the model's project unless given.
    """

    def create() -> Sink:
        from art_mlflow.sink import MlflowSink

        return MlflowSink(tracking_uri, experiment)

    given = {"tracking_uri": absolute(tracking_uri), "experiment": experiment}
    return SinkSpec(
        name="mlflow",
        create=create,
        summary="a run on an MLflow server, or in a database of its own",
        default="MLFLOW_TRACKING_URI" in os.environ,
        options={k: v for k, v in given.items() if v is not None},
        factory=mlflow_sink,
    )


def absolute(uri: str | None) -> str | None:
    """Return a tracking URI that means the same from any working directory."""
    scheme, _, rest = (uri or "").partition(":///")
    if scheme == "sqlite" and rest and not rest.startswith(("/", ":")):
        return f"sqlite:///{Path(rest).absolute()}"
    is_path = uri is not None and "/" in uri and ":" not in uri
    return str(Path(uri).absolute()) if uri and is_path else uri


@hookimpl
def art_sinks() -> list[SinkSpec]:
    """Offer the sink; it is a default one if MLFLOW_TRACKING_URI is set."""
    return [mlflow_sink()]
