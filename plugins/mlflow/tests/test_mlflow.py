from __future__ import annotations

import json
from collections import defaultdict

import attrs
import current_line
import pytest

pytest.importorskip("mlflow", reason="needs mlflow-skinny: make trackers")

from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient

import art_core as art
from art_core.testing.plugin import PluginContract
from art_core.testing.sink import SinkContract, ended, row, run_in
from art_mlflow import mlflow_sink
from art_mlflow.sink import from_mlflow, to_mlflow

# MLflow's own mapping uses what SQLAlchemy 2.1 advises against.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="session")
def uri(tmp_path_factory):
    """One database for all tests: its tables take seconds to make."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(autouse=True)
def tracking_uri(uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)


def mlflow_run(run):
    kept = json.loads((run.run_dir / "sinks" / f"{run.sink or 'mlflow'}.json").read_text())
    return kept["run_id"]


def points(client, run_id):
    """Every point as `(time, step) -> key -> value`."""
    rows = defaultdict(dict)
    for key in client.get_run(run_id).data.metrics:
        for point in client.get_metric_history(run_id, key):
            rows[point.timestamp, point.step][from_mlflow(key)] = point.value
    return rows


class TestSink(SinkContract):
    keeps_split = False
    keeps_empty_rows = False
    factory = "art_mlflow:mlflow_sink"

    @pytest.fixture
    def make_sink(self):
        return mlflow_sink().create

    @pytest.fixture
    def read_back(self, uri):
        def rows(run):
            found = points(MlflowClient(uri), mlflow_run(run))
            return [(step, None, found[time, step]) for time, step in sorted(found)]

        return rows


class TestPlugin(PluginContract):
    module = "art_mlflow.plugin"
    heavy = (*PluginContract.heavy, "mlflow", "sqlalchemy", "alembic")


@given(st.text(min_size=1))
def test_every_key_can_be_read_from_its_form_in_mlflow(key):
    assert from_mlflow(to_mlflow(key)) == key


@pytest.mark.parametrize(
    ("key", "form"),
    [
        ("costs/train/judge", "costs/train/judge"),
        ("reward/größe", "reward/größe"),
        ("reward/a.b", "reward/a.b"),
        ("reward/5%", "reward/5:25:"),
        ("reward/a:b", "reward/a:3a:b"),
        ("reward/..", "reward/:2e::2e:"),
    ],
)
def test_a_key_keeps_its_form_but_for_what_mlflow_refuses(key, form):
    assert to_mlflow(key) == form


def test_a_key_too_long_for_mlflow_is_left_out_and_the_rest_of_the_row_arrives(tmp_path, uri):
    run = run_in(tmp_path)
    sink = mlflow_sink().create()
    sink.open(run)
    sink.write([row(1, metrics={"reward/" + "x" * 300: 1.0, "reward/mean": 0.5})])
    sink.close(ended(run))
    assert list(points(MlflowClient(uri), mlflow_run(run)).values()) == [{"reward/mean": 0.5}]


def test_a_run_has_its_config_and_says_how_it_ended(tmp_path, uri):
    run = attrs.evolve(run_in(tmp_path), config={"lr": 1e-5})
    sink = mlflow_sink(experiment="elsewhere").create()
    sink.open(run)
    sink.close(attrs.evolve(run, status="failed"))
    client = MlflowClient(uri)
    kept = client.get_run(mlflow_run(run))
    assert kept.data.params == {"lr": "1e-05", "base_model": "base"}
    assert kept.info.status == "FAILED"
    assert client.get_experiment(kept.info.experiment_id).name == "elsewhere"


def test_any_config_is_kept_whole(tmp_path, uri):
    config = {"x" * 260 + end: end for end in "ab"} | {n: n for n in range(150)}
    run = attrs.evolve(run_in(tmp_path), config=config)
    mlflow_sink().create().open(run)
    params = MlflowClient(uri).get_run(mlflow_run(run)).data.params
    assert len(params) == 152  # two long names are one, and the base model's is there
    assert params["149"] == "149"


def test_an_open_that_failed_half_way_goes_on_with_the_same_run(tmp_path, uri, monkeypatch):
    run = attrs.evolve(run_in(tmp_path), project="half-way", config={"lr": 1e-5})

    def down(*args, **options):
        raise OSError("the server is down")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", down)
        for _ in range(3):
            with pytest.raises(OSError, match="down"):
                mlflow_sink().create().open(run)
    mlflow_sink().create().open(run)
    client = MlflowClient(uri)
    (only,) = client.search_runs([client.get_experiment_by_name(run.project).experiment_id])
    assert only.data.params == {"lr": "1e-05", "base_model": "base"}


def test_a_run_that_the_server_does_not_have_says_what_to_do(tmp_path, uri):
    run = run_in(tmp_path)
    mlflow_sink().create().open(run)
    elsewhere = mlflow_sink(f"sqlite:///{tmp_path / 'other.db'}").create()
    with pytest.raises(art.SinkError, match=r"other.db has no run .*mlflow.json names.* delete"):
        elsewhere.open(run)


@pytest.mark.parametrize(
    ("status", "said"),
    [("running", "RUNNING"), ("killed", "KILLED"), ("stopped", "FAILED")],
)
def test_a_run_that_goes_on_or_was_killed_is_told_as_that(tmp_path, uri, status, said):
    run = run_in(tmp_path)
    sink = mlflow_sink().create()
    sink.open(run)
    sink.close(attrs.evolve(run, status=status))
    assert MlflowClient(uri).get_run(mlflow_run(run)).info.status == said


@pytest.mark.slow
def test_without_a_server_the_runs_share_a_database_beside_the_projects(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert not mlflow_sink().default
    sink = mlflow_sink().create()
    run = run_in(tmp_path)
    sink.open(run)
    sink.write([row(1, reward__mean=0.5)])
    sink.close(ended(run))
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert list(points(client, mlflow_run(run)).values()) == [{"reward/mean": 0.5}]


@pytest.mark.parametrize(
    ("uri", "stored"),
    [
        ("sqlite:///runs.db", "sqlite:///{here}/runs.db"),
        ("sqlite:////srv/runs.db", "sqlite:////srv/runs.db"),
        ("http://mlflow:5000", "http://mlflow:5000"),
        ("./runs", "{here}/runs"),
        ("databricks", "databricks"),
    ],
)
def test_a_sink_names_its_options_and_is_made_again_from_them(tmp_path, monkeypatch, uri, stored):
    monkeypatch.chdir(tmp_path)
    spec = mlflow_sink(uri, "trials")
    options = {"tracking_uri": stored.format(here=tmp_path), "experiment": "trials"}
    assert spec.options == spec.factory(**spec.options).options == options
    assert mlflow_sink().options == {}


def resumed(seq, **more):
    """Return a row of the second attempt."""
    return attrs.evolve(row(seq, **more), attempt=2)


def logged(run, *rows):
    """Write rows into the run's log and to a sink of a process of their own."""
    run.run_dir.mkdir(parents=True, exist_ok=True)
    with (run.run_dir / "history.jsonl").open("ab") as history:
        history.writelines(row.to_line() for row in rows)
    sink = mlflow_sink().create()
    sink.open(run)
    sink.write(rows)
    sink.close(ended(run))


def line(uri, run, key="reward/mean"):
    found = points(MlflowClient(uri), mlflow_run(run))
    return [
        (step, found[time, step][key]) for time, step in sorted(found) if key in found[time, step]
    ]


def test_a_resumed_run_that_repeats_steps_has_one_line_in_a_run_of_its_own(tmp_path, uri):
    run = run_in(tmp_path)
    logged(run, *(row(n, reward__mean=n / 8) for n in range(1, 6)))
    first = mlflow_run(run)
    again = [resumed(n, step=n - 4, reward__mean=0.5) for n in (7, 8)]
    logged(run, resumed(6, step=2, split="val", val__reward=0.25), *again)
    second = mlflow_run(run)
    assert line(uri, run) == [(1, 0.125), (2, 0.25), (3, 0.5), (4, 0.5)]
    assert line(uri, run, "val/reward") == [(2, 0.25)]
    client = MlflowClient(uri)
    old, new = client.get_run(first), client.get_run(second)
    assert (old.data.tags["art.replaced_by"], old.info.status) == (second, "KILLED")
    assert (new.data.tags["art.replaces"], new.data.tags["art.attempt"]) == (first, "2")
    assert (new.data.params, new.info.status) == (old.data.params, "FINISHED")
    sink = mlflow_sink().create()  # a row that comes again makes no third run
    sink.open(run)
    sink.write(again)
    assert mlflow_run(run) == second
    assert [value for _, value in line(uri, run)] == [0.125, 0.25, 0.5, 0.5]


def test_it_shows_the_current_line(tmp_path, uri):
    run, rows = run_in(tmp_path), current_line.rows()
    for part in (rows[:7], rows[7:]):
        logged(run, *part)
    curves = defaultdict(dict)
    for (_, step), values in sorted(points(MlflowClient(uri), mlflow_run(run)).items()):
        for key, value in values.items():
            curves[key][step] = value
    assert curves == current_line.CURVES
    sink = mlflow_sink().create()  # the cursor was lost: all rows come again
    sink.open(run)
    sink.write(rows)
    assert dict(line(uri, run)) == current_line.CURVES["reward/mean"]


def test_a_resumed_run_that_repeats_nothing_goes_on_in_its_run(tmp_path, uri):
    run = run_in(tmp_path)
    logged(run, *(row(n, reward__mean=n / 8) for n in range(1, 4)))
    first = mlflow_run(run)
    logged(run, resumed(4, reward__mean=0.5))
    assert mlflow_run(run) == first
    assert line(uri, run) == [(1, 0.125), (2, 0.25), (3, 0.375), (4, 0.5)]
    assert MlflowClient(uri).get_run(first).data.tags["art.attempt"] == "2"


def test_a_resume_that_failed_is_tried_again(tmp_path, uri, monkeypatch):
    run = run_in(tmp_path)
    logged(run, *(row(n, reward__mean=n / 8) for n in range(1, 4)))
    first = mlflow_run(run)

    def down(*_, **__):
        raise OSError("no route")

    again = resumed(4, step=2, reward__mean=0.5)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_terminated", down)
        with pytest.raises(OSError, match="no route"):
            logged(run, again)
    sink = mlflow_sink().create()
    sink.open(run)
    sink.write([again])
    assert mlflow_run(run) != first
    assert line(uri, run) == [(1, 0.125), (2, 0.5)]


def test_two_sinks_of_a_run_have_an_mlflow_run_each(tmp_path, uri):
    run = run_in(tmp_path)
    other = attrs.evolve(run, sink="mlflow-team")
    logged(run, row(1, reward__mean=0.5))
    logged(other, row(1, reward__mean=0.5))
    assert mlflow_run(run) != mlflow_run(other)
    assert line(uri, run) == line(uri, other) == [(1, 0.5)]
