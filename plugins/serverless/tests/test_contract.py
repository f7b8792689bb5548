"""The contract of backends, for the serverless one over real sockets."""

from __future__ import annotations

import pytest

from art_core.testing.backend import BackendContract
from art_core.testing.plugin import PluginContract


class TestServerless(BackendContract):
    @pytest.fixture
    def make_backend(self, serving, connect):
        server = serving()
        return lambda: connect(server)


class TestPlugin(PluginContract):
    module = "art_serverless.plugin"
