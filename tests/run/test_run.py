import shutil
import subprocess
import sys
from types import SimpleNamespace

import orjson
import pytest

import art_core as art
from art_core.base.errors import ConfigError, HistoryError, MetricError
from art_core.log.history import MetricsRow
from art_core.log.rows import read_rows
from art_core.log.summary import load_summary, read_summary
from art_core.metrics.taxonomy import builtin_taxonomy
from art_core.run import exits
from art_core.run import run as runs


@pytest.fixture
def make(tmp_path):
    made = []

    def model(name="m", **options):
        options = {"sinks": [], "plugins": art.Plugins()} | options
        made.append(art.Model(name=name, project="p", base_path=tmp_path, **options))
        return made[-1]

    yield model
    for each in made:
        if each._run is not None:
            each.run.close()


def attempts(*rewards, **metadata):
    return [art.TrajectoryGroup([art.Trajectory(reward=r) for r in rewards], metadata=metadata)]


def test_a_row_has_what_is_given_what_waits_and_what_is_derived(make):
    run = make().run
    run.ledger.add("", "costs/gpu", 0.5)
    row = run.record(
        "train",
        1,
        groups=attempts(0.0, 1.0, scenario_id="a"),
        metrics={"loss/train": 0.25, "own": 1},
    )
    metrics = row.metrics
    assert (row.seq, row.attempt, row.step, row.split) == (1, 1, 1, "train")
    assert (metrics["reward/mean"], metrics["loss/train"], metrics["train/own"]) == (0.5, 0.25, 1.0)
    assert metrics["costs/all"] == metrics["costs/cum/gpu"] == 0.5
    assert metrics["data/cum/num_unique_scenarios"] == 1.0
    assert metrics["data/cum/num_trajectories"] == 2.0
    assert metrics["time/wall_clock_sec"] == metrics["time/attempt_sec"] > 0
    assert row.scenario_ids == ("a",)
    assert MetricsRow.from_line(run.history.path.read_bytes()) == row


def test_a_given_cost_and_a_waiting_one_add_up_and_a_given_average_wins(make):
    run = make().run
    run.ledger.add("", "costs/gpu", 0.5)
    run.ledger.add("", "loss/train", 9.0)
    metrics = run.record("train", 1, metrics={"costs/gpu": 0.25, "loss/train": 1.0}).metrics
    assert (metrics["costs/gpu"], metrics["loss/train"]) == (0.75, 1.0)


def test_what_the_user_measured_wins_over_the_default_count(make):
    run = make().run
    run.ledger.add("", "data/step_num_scenarios", 5.0)
    assert run.record("train", 1, groups=attempts(0, 1)).metrics["data/step_num_scenarios"] == 5.0


def test_logging_the_same_groups_twice_counts_them_once(make):
    run = make().run
    groups = attempts(0.0, 1.0, scenario_id="a")
    run.record("train", 0, groups=groups)
    again = run.record("train", 1, groups=groups, metrics={"loss/train": 1.0}).metrics
    assert again["reward/mean"] == 0.5
    assert again["data/cum/num_trajectories"] == 2.0
    assert "data/step_num_trajectories" not in again
    assert run.record("val", 1, groups=groups).metrics["val/data/step_num_trajectories"] == 2.0
    assert again["data/cum/num_unique_scenarios"] == 1.0


def test_groups_that_are_trained_again_are_submitted_again_and_sampled_once(make):
    run = make().run
    both, one = attempts(0, 1), attempts(1, 1)
    run.record("train", 0, groups=both)
    run.record("train", 1, groups=both, trained=True)
    run.record("train", 1, groups=both)
    row = run.record("train", 2, groups=[*both, *one], trained=True).metrics
    assert row["data/step_num_groups_submitted"] == 2.0
    assert row["data/step_num_groups_trainable"] == 1.0
    assert row["data/step_num_trajectories"] == 2.0
    assert row["data/cum/num_groups_submitted"] == 3.0
    assert row["data/cum/num_groups_trainable"] == 2.0
    assert row["data/cum/num_trajectories"] == 4.0


def test_very_many_groups_are_remembered_only_for_a_while(make, monkeypatch):
    monkeypatch.setattr("art_core.metrics.summarize._MAX_GROUPS", 3)
    run = make().run
    for _ in range(5):
        run.record("train", 1, groups=attempts(0, 1), trained=True)
    assert len(run.dedup._groups) == len(run.dedup._trained) == 3


def test_values_that_are_not_finite_are_set_aside_and_said(make, caplog):
    run = make().run
    run.ledger.add("", "costs/gpu", float("nan"))
    row = run.record("train", 1, metrics={"loss/train": float("inf"), "loss/entropy": 1.0})
    assert row.nonfinite == {"costs/gpu": "nan", "loss/train": "inf"}
    assert "loss/train" not in row.metrics
    assert row.metrics["loss/entropy"] == 1.0
    assert "not finite" in caplog.text
    orjson.loads(row.to_line())


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), 10**400])
def test_a_given_value_that_is_not_finite_takes_nothing_that_waits_with_it(make, odd):
    run = make().run
    waiting = {"costs/train/judge": 1.25, "time/step_actor_s": 30.0, "loss/entropy": 2.0}
    for key, value in waiting.items():
        run.ledger.add("", key, value)
    row = run.record("train", 1, metrics=dict.fromkeys(waiting, odd))
    assert {key: row.metrics[key] for key in waiting} == waiting
    assert row.nonfinite == dict.fromkeys(waiting, "nan" if odd != odd else "inf")
    later = run.record("train", 2).metrics
    assert (later["costs/cum/all"], later["time/cum/actor_s"]) == (1.25, 30.0)


def test_sums_beyond_a_float_are_set_aside(make):
    run = make().run
    run.ledger.add("", "time/step_actor_s", 1e308)
    row = run.record("train", 1, metrics={"time/step_actor_s": 1e308})
    assert row.nonfinite == {"time/step_actor_s": "inf"}


def test_a_bad_metric_writes_nothing_and_loses_nothing(make):
    run = make().run
    run.ledger.add("", "costs/gpu", 0.5)
    for bad in ({"costs/all": 1.0}, {"loss/train": None}, {"costs/gpu/fan": 1.0}):
        with pytest.raises(MetricError):
            run.record("train", 1, metrics=bad)
    assert not list(read_rows(run.history.path))
    assert run.record("train", 1).metrics["costs/gpu"] == 0.5


def test_a_row_that_the_disk_refuses_leaves_the_builder_as_it_was(make, monkeypatch):
    run = make().run
    run.ledger.add("", "costs/gpu", 0.5)
    monkeypatch.setattr("art_core.log.history.os.write", lambda fd, data: 0)
    with pytest.raises(HistoryError):
        run.record("train", 1, groups=attempts(0, 1, scenario_id="a"))
    monkeypatch.undo()
    metrics = run.record("train", 1, groups=attempts(0, 1, scenario_id="a")).metrics
    assert metrics["costs/cum/gpu"] == 0.5
    assert metrics["data/cum/num_trajectories"] == 2.0
    assert metrics["data/cum/num_unique_scenarios"] == 1.0


@pytest.mark.parametrize("given", [True, False])
def test_a_row_that_was_not_written_leaves_no_key_in_later_rows(make, monkeypatch, given):
    run = make().run
    run.record("train", 1, metrics={"costs/gpu": 1.0})
    expected = set(run.record("train", 2, metrics={"costs/gpu": 1.0}).metrics)
    monkeypatch.setattr("art_core.log.history.os.write", lambda fd, data: 0)
    for bad in {"costs/train/judge": 0.25, "time/step_new_s": 1.0}, {"costs/eval/judge": 0.5}:
        with pytest.raises(HistoryError):
            run.record("train", 3, metrics=bad | {"costs/gpu": 1.0})
    monkeypatch.undo()
    assert set(run.record("train", 3, metrics={"costs/gpu": 1.0}).metrics) == expected
    if given:
        spent = run.record("train", 4, metrics={"costs/train/judge": 0.25}).metrics
        assert (spent["costs/cum/train"], spent["costs/cum/all"]) == (0.25, 3.25)
    else:
        # Nor does the log know it as a leaf: below it there may be others.
        run.ledger.add_cost("", "train/judge/style", 0.0)
        spent = run.record("train", 4, metrics={"costs/train/judge/style": 0.5}).metrics
        assert (spent["costs/cum/train/judge"], spent["costs/cum/all"]) == (0.5, 3.5)


def test_a_row_that_conflicts_with_one_written_after_it_failed_is_refused(make, monkeypatch):
    run = make().run
    monkeypatch.setattr("art_core.log.history.os.write", lambda fd, data: 0)
    with pytest.raises(HistoryError):
        run.record("train", 1, metrics={"costs/train": 1.0})
    monkeypatch.undo()
    run.record("train", 1, metrics={"costs/train/judge": 1.0})
    with pytest.raises(MetricError, match="sum of the costs below it"):
        run.record("train", 1, metrics={"costs/train": 1.0})


def test_a_run_resumes_from_its_own_tail(make):
    first = make().run
    first.record("train", 1, groups=attempts(0, 1, scenario_id="a"), metrics={"costs/gpu": 0.5})
    clock = first.record("train", 2, metrics={"loss/train": 1.0}).metrics["time/wall_clock_sec"]
    first.close()
    second = make().run
    assert second.last_step == 2
    row = second.record(
        "train", 3, groups=attempts(0, 1, scenario_id="b") + attempts(1, 0, scenario_id="a")
    )
    assert (row.seq, row.attempt) == (3, 2)
    assert row.metrics["costs/cum/all"] == 0.5
    assert row.metrics["data/cum/num_unique_scenarios"] == 2.0
    assert row.scenario_ids == ("b",)
    assert row.metrics["time/wall_clock_sec"] > clock
    assert row.metrics["time/attempt_sec"] < row.metrics["time/wall_clock_sec"]


def test_steps_repeated_under_a_new_attempt_keep_the_money_of_the_abandoned_ones(make):
    first = make().run
    for step in (1, 2, 3):
        first.record("train", step, metrics={"costs/gpu": 1.0})
    first.close()
    second = make().run
    assert second.record("train", 2, metrics={"costs/gpu": 1.0}).metrics["costs/cum/all"] == 4.0


def test_a_leaf_of_an_earlier_attempt_cannot_become_a_parent(make):
    first = make().run
    first.record("train", 1, metrics={"costs/train": 1.0})
    first.close()
    with pytest.raises(MetricError, match="logged as a leaf earlier"):
        make().run.record("train", 2, metrics={"costs/train/judge": 1.0})


async def test_a_cost_added_before_a_resumed_run_is_open_stands_in_no_rows_way(make):
    first = make().run
    first.record("train", 1, metrics={"costs/train/judge/style": 1.0})
    first.close()
    model = make()
    model.metrics_builder().add_cost("train/judge", 0.25)
    metrics = (await model.log(split="train")).metrics
    assert (metrics["costs/train/judge/other"], metrics["costs/cum/train/judge"]) == (0.25, 1.25)
    with pytest.raises(MetricError, match="sum of the costs below it"):
        model.metrics_builder().add_cost("train/judge", 0.25)
    assert (await model.log(split="train")).metrics["costs/cum/all"] == 1.25


async def test_a_cost_that_comes_after_the_end_is_said(make, caplog):
    model = make()
    await model.log(split="train")
    await model.close()
    assert not caplog.text
    model.metrics_builder().add_cost("train/judge", 0.25)
    assert "{'costs/train/judge': 0.25}. Add them before model.close()" in caplog.text


def test_sums_that_no_float_holds_stay_numbers_and_are_said(make, caplog):
    run = make().run
    for step in (1, 2):
        row = run.record("train", step, metrics={"costs/gpu": 1e308, "costs/train/judge": 0.5})
    largest = sys.float_info.max
    assert (row.metrics["costs/gpu"], row.metrics["costs/cum/gpu"]) == (1e308, largest)
    assert row.metrics["costs/cum/train"] == 1.0
    assert b"null" not in run.history.path.read_bytes()
    assert caplog.text.count("more than a float holds") == 1
    run.close()
    assert make().run.record("train", 3).metrics["costs/cum/all"] == largest


@pytest.mark.parametrize("key", ["time/step_actor_s", "data/step_num_games"])
@pytest.mark.parametrize("sign", [1, -1])
def test_no_sum_over_the_run_becomes_null(make, key, sign, caplog):
    run = make().run
    for step in (1, 2):
        row = run.record("train", step, metrics={key: sign * 1e308})
    assert row.metrics[key.replace("step_", "cum/")] == sign * sys.float_info.max
    assert b"null" not in run.history.path.read_bytes()
    assert f"{key.partition('/')[0]}: a sum is more than a float holds" in caplog.text


def test_a_speed_that_no_float_holds_is_the_largest_float(make):
    given = {"data/step_trainer_tokens": 1e300, "time/step_trainer_s": 1e-300}
    row = make().run.record("train", 1, metrics=given)
    assert row.metrics["throughput/avg_trainer_tok_per_s"] == sys.float_info.max


@pytest.mark.parametrize("spoiled", [None, "12", [12]])
def test_sums_that_are_no_numbers_in_the_last_row_are_computed_from_the_rows(make, spoiled, caplog):
    run = make().run
    for step in (1, 2, 3):
        given = {"costs/train/judge": 0.5, "time/step_actor_s": 2.0}
        run.record("train", step, metrics=given, groups=attempts(0, 1, scenario_id=step % 2))
    run.close()
    lines = [orjson.loads(line) for line in run.history.path.read_bytes().splitlines()]
    for name in ("costs/cum/all", "costs/cum/train", "costs/cum/train/judge", "time/cum/actor_s"):
        lines[1][name] = lines[2][name] = spoiled
    lines[2] |= dict.fromkeys(("data/cum/num_unique_scenarios", "time/wall_clock_sec"), spoiled)
    clock = lines[1]["time/wall_clock_sec"]
    run.history.path.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    row = make().run.record("train", 4, metrics={"costs/train/judge": 0.25})
    assert row.metrics["costs/cum/all"] == row.metrics["costs/cum/train/judge"] == 1.75
    assert row.metrics["time/cum/actor_s"] == 6.0
    assert row.metrics["data/cum/num_unique_scenarios"] == 2.0
    assert row.metrics["time/wall_clock_sec"] > clock
    assert "no number at costs/cum" in caplog.text


def test_closing_writes_what_waits_and_says_the_status(make):
    run = make().run
    run.ledger.add("eval", "costs/eval/judge", 0.25)
    run.close()
    run.close()
    (row,) = [row for row, _ in read_rows(run.history.path)]
    assert row.metrics["costs/cum/all"] == 0.25
    assert orjson.loads((run.info.run_dir / "status.json").read_bytes())["status"] == "finished"


def test_closing_writes_what_waits_for_a_row_of_any_context(make):
    model = make()
    model.run.record("train", 3)
    model.metrics_builder("eval").add_user_timing(step_eval_s=2.0)
    model.metrics_builder("judge").add_metric("calls", 4)
    model.metrics_builder("judge").add_cost("train/judge", 0.25)
    model.metrics_builder().add_data(scenario_ids=["a"])
    model.run.close()
    _, *last = [row for row, _ in read_rows(model.run.history.path)]
    assert [(row.step, row.split) for row in last] == [(3, "train"), (3, "judge"), (3, "val")]
    train, judge, val = (row.metrics for row in last)
    assert (train["costs/train/judge"], train["data/cum/num_unique_scenarios"]) == (0.25, 1.0)
    assert (judge["judge/calls"], val["time/step_eval_s"]) == (4.0, 2.0)


def test_a_train_row_has_the_seconds_since_the_last_one(make, monkeypatch):
    run = make().run
    clock = SimpleNamespace(now=1_000.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(runs, "time", clock)
    run.record("train", 1)
    clock.now += 0.25
    assert run.record("train", 2).metrics["time/step_wall_s"] == 0.25
    assert "time/step_wall_s" not in run.record("val", 2).metrics
    assert (
        run.record("train", 3, metrics={"time/step_wall_s": 7.0}).metrics["time/step_wall_s"] == 7.0
    )


def test_plans_of_very_different_rows_are_forgotten(make, monkeypatch):
    monkeypatch.setattr("art_core.metrics.rollup._MAX_PLANS", 4)
    run = make().run
    for i in range(10):
        run.record("train", i, metrics={f"costs/train/tool_{i}": 1.0})
    assert len(run.totals._plans) <= 4
    assert run.totals.totals["costs/cum/all"] == 10.0


class Doubler:
    @art.hookimpl
    def art_rollup(self, leaves, totals, split):
        return {
            "train/double": 2 * leaves["loss/train"],
            "loss/train": 99.0,
            "train/odd": float("nan"),
        }


def test_a_plugin_may_add_metrics_but_not_change_them(make):
    plugins = art.Plugins()
    plugins.register(Doubler(), "doubler")
    metrics = make(plugins=plugins).run.record("train", 1, metrics={"loss/train": 2.0}).metrics
    assert (metrics["train/double"], metrics["loss/train"]) == (4.0, 2.0)
    assert "train/odd" not in metrics


def test_a_plugin_that_fails_costs_its_own_metrics_alone(make, caplog):
    plugins = art.Plugins()
    plugins.register(Doubler(), "doubler")
    run = make(plugins=plugins).run
    assert run.record("train", 1).metrics.get("train/double") is None
    assert "plugin 'doubler' is broken" in caplog.text


SCRIPT = """
import sys, os, signal, art_core as art
run = art.Model(name="m", project="p", base_path=sys.argv[1], sinks=[]).run
run.record("train", 1, metrics={"costs/gpu": 1.0})
run.ledger.add("", "costs/gpu", 0.5)
exec(sys.argv[2])
"""


@pytest.mark.parametrize(
    ("end", "status", "spent"),
    [
        ("pass", "finished", 1.5),
        ("raise ValueError('boo')", "failed", 1.5),
        ("os.kill(os.getpid(), signal.SIGKILL)", "running", 1.0),
        ("os.fork() or os._exit(0); os.wait()", "finished", 1.5),
        ("pid = os.fork()\nif not pid: sys.exit(0)\nos.wait()", "finished", 1.5),
    ],
)
def test_an_exit_without_close_drains_and_says_how_it_ended(tmp_path, end, status, spent):
    subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), end], capture_output=True, check=False
    )
    run_dir = tmp_path / "p" / "models" / "m"
    rows = [row for row, _ in read_rows(run_dir / "history.jsonl")]
    assert rows[-1].metrics["costs/cum/all"] == spent
    assert orjson.loads((run_dir / "status.json").read_bytes())["status"] == status


def test_a_config_that_json_cannot_hold_is_refused_and_the_run_stays_free(make, tmp_path):
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"cannot keep this in model\.json: .*PosixPath"):
            _ = make(config={"data": tmp_path}).run
    assert make(config={"data": str(tmp_path)}).run.info.attempt == 1


def test_a_run_that_cannot_write_what_waits_still_drains_its_sinks(make, monkeypatch):
    run = make().run
    run.ledger.add("", "costs/gpu", 0.5)
    drained = []
    run.delivery = SimpleNamespace(close=lambda *told: drained.append(told))
    monkeypatch.setattr("art_core.log.history.os.write", lambda fd, data: 0)
    with pytest.raises(HistoryError):
        run.close(timeout=3.0)
    assert drained == [(3.0, "finished", None)]


def test_an_exit_closes_what_was_left_open_and_a_child_leaves_it_alone(make):
    run = make().run
    run.close_at_exit("failed", 1.0, ValueError("boo"))
    stored = orjson.loads((run.info.run_dir / "status.json").read_bytes())
    assert (stored["status"], stored["reason"]) == ("failed", "ValueError: boo")
    child = make("other").run
    exits.program.closed(child, "running")
    child.history._pid = -1
    assert child.close() == {}
    status = orjson.loads((child.info.run_dir / "status.json").read_bytes())
    assert status["status"] == "running"
    child.history.close()


@pytest.mark.parametrize("status", ["finished", "failed"])
def test_a_sink_is_told_at_its_close_how_the_run_ended(make, status):
    told = []
    sink = SimpleNamespace(
        open=lambda run: told.append(run.status),
        write=lambda rows: None,
        close=lambda run: told.append(run.status),
    )
    spec = art.SinkSpec(name="told", create=lambda: sink, summary="")
    run = make(sinks=[spec]).run
    run.record("train", 1)
    run.close(status)
    assert told == ["running", status]


def test_closing_brings_the_summary_of_the_log_up_to_date(make):
    run = make().run
    run.record("train", 1, groups=attempts(0.0, 1.0))
    run.close()
    summary = orjson.loads((run.info.run_dir / "summary.json").read_bytes())
    assert summary["offset"] == run.history.path.stat().st_size


def test_a_long_log_without_a_summary_is_left_to_the_leaderboard(make, monkeypatch):
    monkeypatch.setattr("art_core.log.summary.MAX_UNREAD_BYTES", 10)
    run = make().run
    run.record("train", 1)
    run.close()
    assert not (run.info.run_dir / "summary.json").exists()


def test_closing_a_run_whose_directory_is_gone_is_not_an_error(make):
    run = make().run
    run.record("train", 1)
    shutil.rmtree(run.info.run_dir)
    assert run.close() == {}
    assert not run.history.path.exists()


def test_a_failed_run_keeps_its_reason_and_tells_its_sinks(make):
    told = []
    sink = SimpleNamespace(
        open=lambda run: None, write=lambda rows: None, close=lambda run: told.append(run.reason)
    )
    run = make(sinks=[art.SinkSpec(name="told", create=lambda: sink, summary="")]).run
    run.record("train", 1)
    run.close("failed", error=ZeroDivisionError("division by zero"))
    assert told == ["ZeroDivisionError: division by zero"]
    status = orjson.loads((run.info.run_dir / "status.json").read_bytes())
    assert status["reason"] == told[0]


def test_a_status_that_cannot_be_kept_is_said_and_ends_nothing(make, caplog):
    run = make().run
    run.record("train", 1)
    (run.info.run_dir / "status.json").unlink()
    (run.info.run_dir / "status.json").mkdir()
    assert run.close() == {}
    assert "status 'finished' could not be kept" in caplog.text


def test_a_long_log_has_a_summary_while_it_grows(make, monkeypatch):
    monkeypatch.setattr("art_core.log.summary.GROWTH_BYTES", 2_000)
    run = make().run
    kept = run.info.run_dir / "summary.json"
    run.record("train", 1, metrics={"loss/train": 0.5})
    run.history._sync_later()
    assert not kept.exists()
    for step in range(2, 20):
        run.record("train", step, metrics={"loss/train": 0.5})
    run.history._sync_later()
    offset = orjson.loads(kept.read_bytes())["offset"]
    assert offset == run.history.path.stat().st_size
    run.record("train", 20, metrics={"loss/train": 0.25})
    run.history._sync_later()
    assert orjson.loads(kept.read_bytes())["offset"] == offset


def test_the_summary_of_a_growing_log_is_made_by_one_thread_and_not_after_the_end(
    make, monkeypatch
):
    monkeypatch.setattr("art_core.log.summary.GROWTH_BYTES", 1)
    run = make().run
    run.record("train", 1)
    kept = run.info.run_dir / "summary.json"
    with run.summary.lock:
        run.history.after_sync()
    assert not kept.exists()
    run.close()
    kept.unlink()
    run.history.after_sync()
    assert not kept.exists()


GROWING = """
import os, signal, sys, time, art_core as art, art_core.log.history as history
history.SYNC_SECONDS = 0.05
run = art.Model(name="m", project="p", base_path=sys.argv[1], sinks=[]).run
kept, step = run.info.run_dir / "summary.json", 0
while not kept.exists():
    for step in range(step + 1, step + 200):
        values = {f"reward/outcome_{i}": step / (i + 1) for i in range(40)}
        run.record("train", step, metrics=values)
    time.sleep(0.02)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_run_that_was_killed_left_a_summary_that_its_rows_agree_with(tmp_path):
    subprocess.run([sys.executable, "-c", GROWING, str(tmp_path)], check=False, timeout=60)
    log = tmp_path / "p" / "models" / "m" / "history.jsonl"
    taxonomy = builtin_taxonomy()
    with log.open("rb") as file:
        assert 0 < load_summary(log, file, taxonomy).offset <= log.stat().st_size
    brought_up = read_summary(log, taxonomy)
    log.with_name("summary.json").unlink()
    assert brought_up == read_summary(log, taxonomy)
