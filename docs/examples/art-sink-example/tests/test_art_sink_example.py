import json
import sqlite3
from contextlib import closing

import pytest
from art_sink_example import SqliteSink

from art_core.testing.plugin import PluginContract
from art_core.testing.sink import SinkContract


class TestPlugin(PluginContract):
    module = "art_sink_example"


class TestSqliteSink(SinkContract):
    factory = "art_sink_example:sqlite_sink"

    @pytest.fixture(autouse=True)
    def path(self, tmp_path, monkeypatch):
        monkeypatch.setenv("ART_SQLITE", str(tmp_path / "runs.sqlite"))
        return tmp_path / "runs.sqlite"

    @pytest.fixture
    def make_sink(self, path):
        return lambda: SqliteSink(path)

    @pytest.fixture
    def read_back(self, path):
        def read(run):
            select = "select step, split, metrics from rows where run = ? order by seq"
            with closing(sqlite3.connect(path)) as db:
                rows = db.execute(select, [f"{run.project}/{run.name}"]).fetchall()
            return [(step, split, json.loads(metrics)) for step, split, metrics in rows]

        return read
