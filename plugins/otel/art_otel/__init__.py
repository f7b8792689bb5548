"""OpenTelemetry as a sink of art-core."""

from __future__ import annotations

from art_otel.plugin import otel_sink

__all__ = ["otel_sink"]
