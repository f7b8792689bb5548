from __future__ import annotations

import pytest

from art_core.testing.plugin import PluginContract
from art_core.testing.sink import SinkContract
from art_core.testing.sink.rows import SinkRows
from art_otel import otel_sink
from trace_server import attributes, rows_of, trace_server


@pytest.fixture
def server(monkeypatch):
    with trace_server() as server:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url)
        yield server


class TestSink(SinkContract):
    factory = "art_otel:otel_sink"

    @pytest.fixture
    def make_sink(self, server):
        return otel_sink(timeout_s=5.0).create

    @pytest.fixture
    def read_back(self, server):
        return lambda run: rows_of(server, run)


class TestMetrics(SinkRows):
    """What the gauges hold: points of one split and time are a row."""

    test_ten_thousand_rows_arrive = None  # as spans they do

    @pytest.fixture
    def make_sink(self, server):
        return otel_sink(metrics=True, timeout_s=5.0).create

    @pytest.fixture
    def read_back(self, server):
        def rows(run):
            found = {}
            for about, metric in gauges(server):
                if about["art.run"] == run.name:
                    for point in metric.gauge.data_points:
                        split = attributes(point.attributes)["art.split"]
                        row = found.setdefault((point.time_unix_nano, split), {})
                        row[metric.name] = getattr(point, point.WhichOneof("value"))
            ordered = sorted(found.items(), key=lambda item: item[1]["art.seq"])
            return [(of.pop("art.step"), split, without_seq(of)) for (_, split), of in ordered]

        return rows


def gauges(server):
    for request in server.metrics:
        for resource in request.resource_metrics:
            about = attributes(resource.resource.attributes)
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    yield about, metric


def without_seq(row):
    return {key: value for key, value in row.items() if key != "art.seq"}


class TestPlugin(PluginContract):
    module = "art_otel.plugin"
    heavy = (*PluginContract.heavy, "opentelemetry", "requests")
