from __future__ import annotations

import pytest

pytest.importorskip("trackio", reason="needs trackio: make trackers")

import trackio
import trackio.sqlite_storage
from trackio.sqlite_storage import SQLiteStorage

from art_core.testing.plugin import PluginContract
from art_core.testing.sink import SinkContract, row, run_in
from art_trackio import trackio_sink
from art_trackio.sink import project_name, run_id

ENVELOPE = ("seq", "attempt", "split", "timestamp", "step")


@pytest.fixture(autouse=True)
def trackio_dir(tmp_path_factory, monkeypatch):
    """A database of each test's own, for this process and its children."""
    path = tmp_path_factory.mktemp("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(path))
    for module in (trackio.utils, trackio.sqlite_storage):
        monkeypatch.setattr(module, "TRACKIO_DIR", path)


def records(run):
    logs = SQLiteStorage.get_logs(
        project=project_name(run.project), run=run.name, run_id=run_id(run)
    )
    return sorted(logs, key=lambda log: log["seq"])


class TestSink(SinkContract):
    factory = "art_trackio:trackio_sink"

    @pytest.fixture
    def make_sink(self):
        return trackio_sink().create

    @pytest.fixture
    def read_back(self):
        def rows(run):
            return [
                (r["step"], r["split"], {k: v for k, v in r.items() if k not in ENVELOPE})
                for r in records(run)
            ]

        return rows


class TestPlugin(PluginContract):
    module = "art_trackio.plugin"
    heavy = (*PluginContract.heavy, "trackio", "gradio_client", "pandas")


def test_a_project_of_ones_own_takes_the_rows_and_the_config(tmp_path):
    run = run_in(tmp_path)
    run.config["lr"] = 1e-5
    sink = trackio_sink("elsewhere").create()
    sink.open(run)
    sink.write([row(1, reward__mean=0.5)])
    sink.close(run)
    config = SQLiteStorage.get_run_config("elsewhere", run.name, run_id=run_id(run))
    assert config["lr"] == 1e-5
    assert config["art"] == {"project": "contract", "name": "agent", "base_model": "base"}


def test_the_sink_is_a_default_one_where_trackio_is_wanted(monkeypatch):
    assert trackio_sink().default
    monkeypatch.delenv("TRACKIO_DIR")
    assert not trackio_sink().default


def test_a_sink_names_its_options_and_is_made_again_from_them():
    spec = trackio_sink("elsewhere")
    assert spec.options == spec.factory(**spec.options).options == {"project": "elsewhere"}
    assert trackio_sink().options == {}


def test_projects_whose_names_trackio_would_join_stay_apart():
    names = ["agentv1", "agent.v1", "agent v1", "agent/v1", "registry-a", "a_configs", "größe", ""]
    made = [project_name(name) for name in names]
    assert made[0] == "agentv1"
    files = {SQLiteStorage.get_project_db_filename(name) for name in made}
    assert len(files) == len(names)
    assert all(project_name(name) == name for name in made)


def test_a_late_evaluation_carries_no_totals(tmp_path):
    run = run_in(tmp_path)
    sink = trackio_sink().create()
    sink.open(run)
    totals = {"costs/cum/all": 2.0}
    sink.write([row(1, step=5, metrics={"reward/mean": 0.5, **totals})])
    sink.write([row(2, step=3, split="val", metrics={"val/reward": 0.25, **totals})])
    first, late = records(run)
    assert "costs/cum/all" in first
    assert late["val/reward"] == 0.25
    assert "costs/cum/all" not in late
