from __future__ import annotations

from collections import defaultdict

import attrs
import current_line
import pytest

pytest.importorskip("tensorboard", reason="needs tensorboard: make trackers")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

from art_core.testing.plugin import PluginContract
from art_core.testing.sink import SinkContract, row, run_in
from art_tensorboard import tensorboard_sink

FLOAT32 = 1e-7


def points(logdir):
    """Every scalar in the event files as `(wall time, step) -> key -> value`."""
    events = EventAccumulator(str(logdir), size_guidance={"scalars": 0})
    events.Reload()
    rows = defaultdict(dict)
    for key in events.Tags()["scalars"]:
        for scalar in events.Scalars(key):
            rows[scalar.wall_time, scalar.step][key] = scalar.value
    return rows


# After a full disk TensorBoard's thread dies, and its file is left open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
class TestSink(SinkContract):
    keeps_split = False
    keeps_empty_rows = False
    relative_error = FLOAT32
    largest = 3e38
    factory = "art_tensorboard:tensorboard_sink"

    @pytest.fixture
    def make_sink(self):
        return tensorboard_sink().create

    @pytest.fixture
    def read_back(self):
        def rows(run):
            found = points(run.run_dir / "tensorboard")
            return [(step, None, found[time, step]) for time, step in sorted(found)]

        return rows


class TestPlugin(PluginContract):
    module = "art_tensorboard.plugin"
    heavy = (*PluginContract.heavy, "tensorboard", "google.protobuf", "tensorflow")


def test_a_logdir_of_ones_own_holds_all_runs_side_by_side(tmp_path):
    sink = tensorboard_sink(tmp_path / "logs").create()
    run = run_in(tmp_path)
    sink.open(run)
    sink.write([row(1, reward__mean=0.5)])
    sink.close(run)
    found = points(tmp_path / "logs" / "contract" / "agent")
    assert list(found.values()) == [{"reward/mean": 0.5}]


def test_the_sink_takes_rows_only_where_it_is_named():
    assert not tensorboard_sink().default


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_after_a_full_disk_the_rows_go_on_in_another_file(tmp_path, monkeypatch):
    def full(self, data):
        raise OSError("No space left on device")

    sink, run = tensorboard_sink().create(), run_in(tmp_path)
    sink.open(run)
    sink.write([row(1, reward__mean=0.25)])
    with monkeypatch.context() as patch:
        patch.setattr(RecordWriter, "write", full)
        for _ in range(2):
            with pytest.raises(OSError, match="No space left"):
                sink.write([row(2, reward__mean=0.5)])
    sink.write([row(2, reward__mean=0.5)])
    sink.write([row(3, reward__mean=0.75)])
    sink.close(run)
    found = points(run.run_dir / "tensorboard")
    assert [row["reward/mean"] for _, row in sorted(found.items())] == [0.25, 0.5, 0.75]


def test_a_sink_names_its_options_and_is_made_again_from_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = tensorboard_sink("logs")
    assert spec.options == {"logdir": str(tmp_path / "logs")}
    assert spec.factory(**spec.options).options == spec.options
    assert tensorboard_sink().options == {}


def resumed(seq, **more):
    """Return a row of the second attempt."""
    return attrs.evolve(row(seq, **more), attempt=2)


def log_rows(run, rows):
    """Add rows to the run's log that are not there yet."""
    run.run_dir.mkdir(parents=True, exist_ok=True)
    file = run.run_dir / "history.jsonl"
    before = file.read_bytes() if file.exists() else b""
    file.write_bytes(before + b"".join(r.to_line() for r in rows if r.to_line() not in before))


def test_a_resumed_run_has_one_line(tmp_path):
    run = run_in(tmp_path)
    rows = [row(n, reward__mean=n / 8) for n in range(1, 6)]
    rows += [resumed(6, step=2, split="val", val__reward=0.5)]
    rows += [resumed(n, step=n - 4, reward__mean=0.5) for n in (7, 8)]
    costs = resumed(5, step=1, costs__gpu=0.5)  # trains nothing, and so replaces nothing
    for part in (
        rows[:4],
        [rows[4]],
        [costs, *rows[5:7]],
        rows[6:],
    ):  # by three processes, one of which repeats a row
        log_rows(run, part)
        sink = tensorboard_sink().create()
        sink.open(run)
        sink.write(part)
        sink.close(run)
    found = sorted(points(run.run_dir / "tensorboard").items(), key=lambda item: item[0])
    line = [(step, row["reward/mean"]) for (_, step), row in found if "reward/mean" in row]
    assert line == [(1, 0.125), (2, 0.25), (3, 0.5), (4, 0.5)]
    assert [step for (_, step), row in found if "val/reward" in row] == [2]


def test_it_shows_the_current_line(tmp_path):
    run, rows = run_in(tmp_path), current_line.rows()
    log_rows(run, rows)
    for part in (rows[:7], rows[7:]):
        sink = tensorboard_sink().create()
        sink.open(run)
        sink.write(part)
        sink.close(run)
    curves = defaultdict(dict)
    for (_, step), values in sorted(points(run.run_dir / "tensorboard").items()):
        for key, value in values.items():
            curves[key][step] = pytest.approx(value)
    assert curves == current_line.CURVES


def test_the_totals_of_a_late_evaluation_stand_at_the_furthest_step(tmp_path):
    run = run_in(tmp_path)
    sink = tensorboard_sink().create()
    sink.open(run)
    totals = {"costs/cum/all": 2.0, "time/wall_clock_sec": 9.0}
    sink.write([row(1, step=5, metrics={"reward/mean": 0.5, **totals})])
    sink.write([row(2, step=3, split="val", metrics={"val/reward": 0.25, **totals})])
    sink.close(run)
    found = sorted(points(run.run_dir / "tensorboard").items())
    assert [(step, set(values)) for (_, step), values in found] == [
        (5, {"reward/mean", *totals}),
        (3, {"val/reward"}),
        (5, set(totals)),
    ]
