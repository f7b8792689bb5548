"""Sends spans and rows by OTLP over HTTP, with the exporters of OpenTelemetry's SDK."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import requests
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.metrics.export import (
    Gauge,
    Metric,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import Event as SdkEvent
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from art_core import MetricsRow, RunInfo, SinkError
from art_otel.spans import SpanDraft, nanoseconds

log = logging.getLogger("art_core")

SCOPE = InstrumentationScope("art-otel")
_EXPORTERS = "opentelemetry.exporter.otlp.proto.http"
_LOGGERS = [f"{_EXPORTERS}.{name}_exporter" for name in ("trace", "metric")]
_SHOWN_CHARACTERS = 300


class WatchedSession(requests.Session):  # type: ignore[misc]  # requests has no types here
    """Keeps the newest answer or error, which the exporters only log."""

    answer: requests.Response | None = None
    error: Exception | None = None

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """Send a request and keep what came of it."""
        self.answer = self.error = None
        try:
            self.answer = super().send(request, **options)
        except Exception as error:
            self.error = error
            raise
        return self.answer

    def outcome(self) -> str:
        """Describe the newest answer or error in one line."""
        if self.answer is None:
            return str(self.error or "no request was sent")
        text = " ".join(self.answer.text.split())[:_SHOWN_CHARACTERS]
        return f"HTTP {self.answer.status_code} {self.answer.reason}: {text}".rstrip(": ")


@attrs.define(eq=False)
class Otlp:
    """A collector. `endpoint` is its base URL; None and no headers leave them to the variables
    `OTEL_EXPORTER_OTLP_...`. With `metrics`, rows are sent as gauges too.
    """

    endpoint: str | None = None
    headers: dict[str, str] = attrs.field(factory=dict, repr=False)
    metrics: bool = False
    timeout_s: float = 10.0
    _session: WatchedSession = attrs.field(factory=WatchedSession, init=False, repr=False)
    _resource: Resource = attrs.field(factory=Resource.get_empty, init=False, repr=False)
    _run: RunInfo | None = attrs.field(default=None, init=False)

    def open(self, run: RunInfo) -> None:
        """Describe the run, which is the resource of all spans."""
        about = {"art.project": run.project, "art.run": run.name}
        base = {} if run.base_model is None else {"art.base_model": run.base_model}
        resource = Resource.create({**about, **base})
        if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "art-core"}))
        self._resource, self._run = resource, run

    def send(self, spans: Sequence[SpanDraft], *, content: bool) -> None:
        """Send spans, with messages or without; raises SinkError if they were not taken."""
        made = [sdk_span(span, self._resource, content=content) for span in spans]
        exporter = OTLPSpanExporter(
            endpoint=self._url("v1/traces"),
            headers=self.headers or None,
            timeout=self.timeout_s,
            session=self._session,
        )
        with _silent(_LOGGERS):
            taken = exporter.export(made) is SpanExportResult.SUCCESS
        self._check("spans", taken=taken)

    def send_rows(self, rows: Sequence[MetricsRow]) -> None:
        """Send rows as gauges if that was asked for; raises SinkError if they were not taken."""
        if not self.metrics:
            return
        assert self._run is not None
        exporter = OTLPMetricExporter(
            endpoint=self._url("v1/metrics"),
            headers=self.headers or None,
            timeout=self.timeout_s,
            session=self._session,
        )
        with _silent(_LOGGERS):
            taken = exporter.export(gauges(rows, self._run, self._resource))
        self._check("metrics", taken=taken is MetricExportResult.SUCCESS)

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def _url(self, path: str) -> Any:
        return None if self.endpoint is None else f"{self.endpoint.rstrip('/')}/{path}"

    def _check(self, what: str, *, taken: bool) -> None:
        if not taken:
            raise SinkError(
                f"the {what} were not taken by the OTLP endpoint: {self._session.outcome()}",
                "They wait in the run's log. OTEL_EXPORTER_OTLP_ENDPOINT or the option `endpoint` "
                "is the collector's base URL.",
            )
        answer = self._session.answer
        if what == "spans" and answer is not None and (refused := refused_spans(answer)):
            log.warning("OTLP: the collector refused %s", refused)


def refused_spans(answer: requests.Response) -> str:
    """Describe the spans that an answer refuses for good; "" if there are none."""
    if not answer.headers.get("Content-Type", "").startswith("application/x-protobuf"):
        return ""
    partial = ExportTraceServiceResponse.FromString(answer.content).partial_success
    count = partial.rejected_spans
    return f"{count} spans: {partial.error_message}" if count else ""


@contextmanager
def _silent(names: Sequence[str]) -> Iterator[None]:
    """Drop what loggers get on this thread: delivery reports the failure itself."""
    thread = threading.get_ident()

    def of_others(record: logging.LogRecord) -> bool:
        return record.thread != thread

    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addFilter(of_others)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(of_others)


def _context(trace: int, span: int) -> SpanContext:
    return SpanContext(trace, span, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def sdk_span(span: SpanDraft, resource: Resource, *, content: bool) -> ReadableSpan:
    """Return a span of OpenTelemetry's SDK, with messages or without."""
    failed = span.error is not None
    return ReadableSpan(
        name=span.name,
        context=_context(span.trace, span.id),
        parent=None if span.parent is None else _context(span.trace, span.parent),
        resource=resource,
        attributes={**span.attributes, **(span.content if content else {})},
        events=[SdkEvent(e.name, dict(e.attributes), timestamp=e.at) for e in span.events],
        links=[Link(_context(*ids)) for ids in span.links],
        kind=SpanKind.CLIENT if span.kind == "call" else SpanKind.INTERNAL,
        instrumentation_scope=SCOPE,
        status=Status(StatusCode.ERROR, span.error) if failed else Status(StatusCode.UNSET),
        start_time=span.start,
        end_time=span.end,
    )


def gauges(rows: Sequence[MetricsRow], run: RunInfo, resource: Resource) -> MetricsData:
    """Return rows as one gauge for each metric, with the row's step and seq as `art.step` and
    `art.seq`: points of one split and time are one row.
    """
    points: dict[str, list[NumberDataPoint]] = {}
    for row in rows:
        at = nanoseconds(row.recorded_at)
        numbers = {"art.step": row.step, "art.seq": row.seq, **row.metrics}
        for name, value in numbers.items():
            point = NumberDataPoint({"art.split": row.split}, 0, at, value)
            points.setdefault(name, []).append(point)
    specs = run.taxonomy.specs
    found = [
        Metric(
            name=name,
            description=specs[name].help if name in specs else "",
            unit=specs[name].unit if name in specs else "",
            data=Gauge(data_points=of_name),
        )
        for name, of_name in points.items()
    ]
    scope = ScopeMetrics(scope=SCOPE, metrics=found, schema_url="")
    return MetricsData([ResourceMetrics(resource=resource, scope_metrics=[scope], schema_url="")])
