"""MLflow as a sink of art-core."""

from __future__ import annotations

from art_mlflow.plugin import mlflow_sink

__all__ = ["mlflow_sink"]
