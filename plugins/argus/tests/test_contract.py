import pytest

from art_argus import argus_sink
from art_argus.events import Job
from art_core.testing.plugin import PluginContract
from art_core.testing.sink import SinkContract

OURS = {"train_loss": "loss/train", "lr": "loss/learning_rate"}
ADDED = {"epoch", "split", "attempt", "seq", "batch_time_ms", "step", "line", "level", "ts_unix"}


class TestPlugin(PluginContract):
    module = "art_argus.plugin"
    heavy = (*PluginContract.heavy, "httpx2")


class TestSink(SinkContract):
    factory = "art_argus:argus_sink"

    @pytest.fixture
    def make_sink(self, argus, token):
        return argus_sink(argus.url, token).create

    @pytest.fixture
    def read_back(self, argus, token, monkeypatch):
        monkeypatch.setenv("ARGUS_URL", argus.url)
        monkeypatch.setenv("ARGUS_TOKEN", token)

        def read(run):
            batch = Job.of(run).batch_id
            rows = [*argus.of_type("job_epoch"), *argus.of_type("log_line")]
            points = [e["data"] for e in rows if e["batch_id"] == batch and "seq" in e["data"]]
            points.sort(key=lambda data: data["seq"])
            return [
                (
                    data["epoch"] if "epoch" in data else data["step"],
                    data["split"],
                    {OURS.get(k, k): v for k, v in data.items() if k not in ADDED},
                )
                for data in points
            ]

        return read
