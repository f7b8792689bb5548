from __future__ import annotations

import pytest

from art_core.testing.plugin import PluginContract
from art_core.testing.sink import SinkContract
from art_wandb import wandb_sink
from offline_runs import history, metrics_of


class TestSink(SinkContract):
    factory = "art_wandb:wandb_sink"

    @pytest.fixture
    def make_sink(self):
        return wandb_sink().create

    @pytest.fixture
    def read_back(self):
        def rows(run):
            items = history(run.run_dir).values()
            return [(i["training_step"], i["split"], metrics_of(i)) for i in items]

        return rows


class TestPlugin(PluginContract):
    module = "art_wandb.plugin"
