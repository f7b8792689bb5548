"""The hook of art-otel. OpenTelemetry is imported when a run opens."""

from __future__ import annotations

import os
from collections.abc import Mapping

from art_core import Sink, SinkSpec, hookimpl

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"


def otel_sink(
    endpoint: str | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    content: bool | None = None,
    metrics: bool = False,
    timeout_s: float = 10.0,
) -> SinkSpec:
    """Return a sink that sends each attempt as a trace, and each row as a span, by OTLP/HTTP.

    `endpoint` is the collector's base URL; endpoint and headers are by default those of the
    variables `OTEL_EXPORTER_OTLP_...`. `content` sends messages, tools and their results too; by
    default the variable `OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT` decides, else they
    stay. `metrics` sends the rows as OpenTelemetry's metrics as well.
    """

    def create() -> Sink:
        from art_otel.otlp import Otlp
        from art_otel.sink import TraceSink

        destination = Otlp(
            endpoint=endpoint, headers=dict(headers or {}), metrics=metrics, timeout_s=timeout_s
        )
        return TraceSink(destination, captures_content() if content is None else content)

    given = {
        "endpoint": (endpoint, None),
        "content": (content, None),
        "metrics": (metrics, False),
        "timeout_s": (timeout_s, 10.0),
    }
    return SinkSpec(
        name="otel",
        create=create,
        summary="a trace per attempt for OpenTelemetry, by OTLP over HTTP",
        default=any(os.environ.get(name) for name in ENDPOINTS),
        # Without the headers, which hold the keys: another process takes them of its environment.
        options={name: value for name, (value, default) in given.items() if value != default},
        factory=otel_sink,
    )


def captures_content() -> bool:
    """Return whether the environment asks for messages on spans."""
    asked = os.environ.get(CONTENT, "").strip().lower()
    return asked in {"true", "1", "span_only", "span_and_event"}


@hookimpl
def art_sinks() -> list[SinkSpec]:
    """Offer the sink; it is a default one if an endpoint is set."""
    return [otel_sink()]
