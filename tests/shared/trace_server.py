"""A receiver of OTLP over HTTP, and of Langfuse's scores, for the tests of sinks of traces."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


class TraceServer(ThreadingHTTPServer):
    """Keeps what it gets. `refuses` maps a path to the status that it answers with; `rejected` is
    the number of spans that a partial success refuses. `knows_lists` is False for a Langfuse that
    takes a list of scores only by its older API.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests = []
        self.traces, self.metrics, self.scores = [], [], {}
        self.refuses, self.rejected, self.knows_lists = {}, 0, True

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def spans(self):
        """Each span once, as a store of traces keeps them, with its resource's attributes."""
        kept = {}
        for request in self.traces:
            for resource in request.resource_spans:
                about = attributes(resource.resource.attributes)
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        kept[span.trace_id, span.span_id] = (about, span)
        return list(kept.values())

    def documents(self):
        """The requests in OTLP's JSON."""
        return [MessageToDict(request) for request in self.traces]


def attributes(given):
    return {item.key: value(item.value) for item in given}


def value(given):
    kind = given.WhichOneof("value")
    if kind == "array_value":
        return [value(item) for item in given.array_value.values]
    return getattr(given, kind) if kind else None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.requests.append((self.path, dict(self.headers)))
        status = self.server.refuses.get(self.path)
        if status is not None:
            self.answer(status, b'{"message": "not today"}')
        elif self.path.endswith("/v1/traces"):
            self.server.traces.append(ExportTraceServiceRequest.FromString(body))
            answer = ExportTraceServiceResponse()
            if self.server.rejected:
                answer.partial_success.rejected_spans = self.server.rejected
                answer.partial_success.error_message = "too old"
            self.answer(200, answer.SerializeToString())
        elif self.path.endswith("/v1/metrics"):
            self.server.metrics.append(ExportMetricsServiceRequest.FromString(body))
            self.answer(200, b"")
        else:
            self.scored(json.loads(body))

    def scored(self, body):
        if self.path == "/api/public/scores" and self.server.knows_lists:
            bad = [score for score in body if not isinstance(score.get("value"), float)]
            self.server.scores |= {score["id"]: score for score in body if score not in bad}
            errors = [{"message": f"{score['name']} is no number"} for score in bad]
            results = {"accepted": len(body) - len(bad), "rejected": len(bad), "errors": errors}
            self.answer(207 if bad else 202, json.dumps(results if bad else {}).encode())
        elif self.path == "/api/public/scores":
            self.answer(400, b'{"message": "Invalid request data", "error": []}')
        else:
            events = body["batch"]
            self.server.scores |= {e["body"]["id"]: e["body"] for e in events}
            done = {"successes": [{"id": e["id"], "status": 201} for e in events], "errors": []}
            self.answer(207, json.dumps(done).encode())

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        kind = "x-protobuf" if self.path.startswith("/v1/") and status == 200 else "json"
        self.send_header("Content-Type", f"application/{kind}")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@contextmanager
def trace_server() -> Iterator[TraceServer]:
    with TraceServer() as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


def rows_of(server, run):
    """The rows of a run that its spans hold: step, split and metrics, in order of seq."""
    found = []
    for about, span in server.spans():
        of = attributes(span.attributes)
        if about["art.run"] == run.name and "art.seq" in of:
            prefix = "art.metric."
            metrics = {k.removeprefix(prefix): v for k, v in of.items() if k.startswith(prefix)}
            found.append((of["art.seq"], (of["art.step"], of["art.split"], metrics)))
    return [row for _, row in sorted(found, key=lambda item: item[0])]
