import pytest

from art_argus import argus_sink
from art_core.testing.plugin import PluginContract
from art_core.testing.sink import SinkContract


class TestPlugin(PluginContract):
    module = "art_argus.plugin"
    heavy = (*PluginContract.heavy, "httpx2")


class TestSink(SinkContract):
    @pytest.fixture
    def make_sink(self, argus, token):
        self.argus = argus
        return argus_sink(argus.url, token).create

    def received(self, run):
        return [event["data"]["seq"] for event in self.argus.of_type("job_epoch")]
