import math
from datetime import UTC, datetime
from pathlib import Path

import attrs
import pytest

import art_core as art
from art_argus.events import Job, ended, heartbeat, origin, point, safe_id, started
from art_argus.summary import Summary
from art_core.metrics.taxonomy import builtin_taxonomy

IS_COUNT = builtin_taxonomy().is_count
AT = datetime(2026, 5, 1, tzinfo=UTC)


def summary_of(*rows):
    summary = Summary(art.RunInfo(project="demo", name="agent", run_dir=Path("missing")))
    summary.add(rows)
    return summary


def metrics_of(rows, config=None):
    summary = summary_of()
    summary.add(rows)
    return summary.metrics(config or {})


def test_a_run_is_a_batch_of_one_job(run):
    job = Job.of(run)
    batch, start = started(job, run, AT)
    assert (batch["event_type"], batch["batch_id"], batch["job_id"]) == (
        "batch_start",
        "demo-agent",
        None,
    )
    assert batch["data"] == {"experiment_type": "agent-rl", "n_total_jobs": 1}
    assert (start["event_type"], start["job_id"]) == ("job_start", "demo.agent")
    assert start["data"] == {
        "model": "agent",
        "dataset": "demo",
        "base_model": "tiny",
        "attempt": 1,
    }
    assert batch["timestamp"] == "2026-05-01T00:00:00.000000Z"
    assert batch["source"]["project"] == "demo"


def test_the_task_is_the_dataset(run):
    assert Job.of(run, "sums").dataset == "sums"
    assert Job.of(attrs.evolve(run, config={"task": "mazes"})).dataset == "mazes"


def test_a_train_row_is_a_point_whose_epoch_is_its_step(run, make_row):
    metrics = {
        "loss/train": 0.5,
        "loss/learning_rate": 1e-5,
        "time/step_trainer_s": 3.0,
        "data/step_num_gradient_steps": 4.0,
        "reward/mean": 0.25,
    }
    event = point(Job.of(run), make_row(9, metrics), IS_COUNT)
    assert event["data"] == {
        "epoch": 9,
        "train_loss": 0.5,
        "lr": 1e-5,
        "batch_time_ms": 750.0,
        "time/step_trainer_s": 3.0,
        "data/step_num_gradient_steps": 4,
        "reward/mean": 0.25,
        "split": "train",
        "attempt": 1,
        "seq": 9,
    }
    assert event["timestamp"] == "2026-05-01T00:01:30.000000Z"


def test_an_evaluation_is_a_log_line_with_its_values_and_no_epoch(run, make_row):
    metrics = {"val/reward": 0.5, "val/data/step_num_trajectories": 9.0}
    event = point(Job.of(run), make_row(3, metrics, split="val"), IS_COUNT)
    assert (event["event_type"], event["job_id"]) == ("log_line", "demo.agent")
    assert event["data"] == {
        "line": "val at step 3: reward 0.5",
        "level": "info",
        "ts_unix": AT.timestamp() + 30,
        "step": 3,
        "val/reward": 0.5,
        "val/data/step_num_trajectories": 9,
        "split": "val",
        "attempt": 1,
        "seq": 3,
    }
    other = point(Job.of(run), make_row(4, {"exam/score": 0.5}, split="exam"), IS_COUNT)
    assert other["data"]["line"] == "exam at step 4"


def test_a_reward_is_never_a_loss_and_no_key_breaks_the_server(run, make_row):
    row = make_row(1, {"val/reward": 0.5, "val/loss": 0.1}, split="val")
    data = point(Job.of(run), row, IS_COUNT)["data"]
    assert data["val/reward"] == 0.5
    assert not {"val_loss", "timestamp"} & data.keys()


def test_only_finite_floats_are_sent(run, make_row):
    row = make_row(1, {"reward/mean": math.nan, "reward/x": math.inf, "reward/y": 1.0})
    data = point(Job.of(run), row, IS_COUNT)["data"]
    assert data["reward/y"] == 1.0
    assert not {"reward/mean", "reward/x"} & data.keys()
    assert metrics_of([row]) == {"reward/y": 1.0, "train_epochs": 1}


def test_an_id_is_the_same_for_the_same_row_and_another_for_another(run, make_row):
    job, other = Job.of(run), Job.of(attrs.evolve(run, name="agent-2"))
    row, later = make_row(1, {}), make_row(2, {})
    same_seq_of_a_new_run = attrs.evolve(row, recorded_at=later.recorded_at)
    ids = {
        point(who, what, IS_COUNT)["event_id"]
        for who, what in [(job, row), (job, later), (other, row), (job, same_seq_of_a_new_run)]
    }
    assert len(ids) == 4
    assert point(job, row, IS_COUNT) == point(Job.of(run), attrs.evolve(row), IS_COUNT)


def test_the_result_has_the_newest_and_the_best(make_row):
    rows = [
        make_row(1, {"reward/mean": 0.5, "time/step_wall_s": 2.0, "reward/correct": 0.1}),
        make_row(2, {"reward/mean": 0.75, "time/step_wall_s": 4.0}),
        make_row(3, {"val/reward": 0.625, "val/data/step_num_trajectories": 9.0}, split="val"),
        make_row(
            4,
            {
                "reward/mean": 0.25,
                "time/step_wall_s": 6.0,
                "time/wall_clock_sec": 20.0,
                "data/cum/num_trajectories": 50.0,
                "costs/cum/all": 1.5,
                "costs/gpu": 0.5,
                "loss/train": 0.125,
                "throughput/avg_trainer_tok_per_s": 80.0,
                "system/gpu_memory_mb": 100.0,
                "system/gpu_memory_peak_mb": 200.0,
            },
        ),
    ]
    found = metrics_of(rows, {"seed": 7, "n_params": 135_000_000, "note": "text"})
    assert found == {
        "reward/mean": 0.25,
        "reward/mean_best": 0.75,
        "reward/mean_best_step": 2,
        "reward/correct": 0.1,
        "val/reward": 0.625,
        "val/reward_best": 0.625,
        "val/reward_best_step": 3,
        "val/data/step_num_trajectories": 9,
        "time/step_wall_s": 6.0,
        "time/wall_clock_sec": 20.0,
        "data/cum/num_trajectories": 50,
        "costs/cum/all": 1.5,
        "costs/gpu": 0.5,
        "loss/train": 0.125,
        "throughput/avg_trainer_tok_per_s": 80.0,
        "Total_Train_Time": 20.0,
        "Avg_Epoch_Time": 4.0,
        "Samples_Per_Second": 2.5,
        "GPU_Memory": 100.0,
        "GPU_Memory_Peak": 200.0,
        "system/gpu_memory_mb": 100.0,
        "system/gpu_memory_peak_mb": 200.0,
        "seed": 7,
        "n_params": 135_000_000,
        "Model_Params": 135_000_000,
        "train_epochs": 3,
    }
    whole = {key for key, value in found.items() if type(value) is int}
    assert whole == {
        "reward/mean_best_step", "val/reward_best_step", "val/data/step_num_trajectories",
        "data/cum/num_trajectories", "seed", "n_params", "Model_Params", "train_epochs",
    }  # fmt: skip


def test_a_described_value_that_is_no_finite_number_is_left_out(make_row):
    config = {"seed": True, "n_params": math.inf}
    assert metrics_of([make_row(1, {})], config) == {"train_epochs": 1}


def test_a_row_seen_twice_counts_once_and_a_repeated_step_replaces(make_row):
    first, again = make_row(1, {"reward/mean": 0.9}), make_row(2, {"reward/mean": 0.1}, step=1)
    result = metrics_of([first, first, again, first])
    assert (result["reward/mean"], result["reward/mean_best"]) == (0.1, 0.1)


def test_results_are_those_of_the_current_line(run, make_row, tmp_path):
    rows = [make_row(n, {"reward/mean": n / 8, "time/step_wall_s": 10.0}) for n in (1, 2, 3, 4)]
    again = {"reward/mean": 0.125, "time/step_wall_s": 4.0}
    rows.append(attrs.evolve(make_row(5, again, step=2), attempt=2))
    rows.append(attrs.evolve(make_row(6, {"time/step_wall_s": 2.0}, step=2), attempt=2))
    run = attrs.evolve(run, run_dir=tmp_path)
    (tmp_path / "history.jsonl").write_bytes(b"".join(row.to_line() for row in rows))
    found = Summary.of_log(run).metrics({})
    assert (found["train_epochs"], found["Avg_Epoch_Time"]) == (2, 8.0)
    assert (found["reward/mean_best"], found["reward/mean_best_step"]) == (0.125, 1)
    assert found["reward/mean"] == 0.125


def test_a_finished_run_is_done_and_a_failed_one_keeps_its_last_metrics(run, make_row):
    job, summary = Job.of(run), summary_of()
    summary.add([make_row(3, {"reward/mean": 0.5, "time/wall_clock_sec": 12.0})])
    done, batch_done = ended(job, attrs.evolve(run, status="finished"), summary, AT)
    assert (done["event_type"], done["data"]["status"]) == ("job_done", "DONE")
    assert done["data"]["elapsed_s"] == batch_done["data"]["total_elapsed_s"] == 12.0
    failed, batch_failed = ended(job, attrs.evolve(run, status="failed"), summary, AT)
    assert (failed["event_type"], failed["data"]["reason"]) == ("job_failed", "the run failed")
    assert failed["data"]["metrics"] == done["data"]["metrics"]
    assert batch_failed["data"]["n_failed"] == 1
    killed, _ = ended(job, attrs.evolve(run, status="killed"), summary, AT)
    assert killed["data"]["reason"] == "the run was killed"
    assert ended(job, run, summary, AT) == []


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("agent-1", "agent-1"),
        ("ünïcode_1.2", "ünïcode_1.2"),
        ("a/b", "a-b-c14cddc0"),
        ("two words", "two-words-a03f1d61"),
    ],
)
def test_ids_have_no_slashes_or_spaces_and_stay_apart(text, safe):
    assert safe_id(text, 128) == safe
    assert len(safe_id(text * 300, 128)) <= 128


def test_two_runs_never_share_a_batch(run):
    ids = {
        Job.of(attrs.evolve(run, project=project, name=name)).batch_id
        for project, name in [("a-b", "c"), ("a", "b-c"), ("a-b-c", "d"), ("a-b", "c-d")]
    }
    assert len(ids) == 4


def test_a_sign_of_life_is_a_line_of_the_job(run):
    event = heartbeat(Job.of(run), AT)
    assert (event["event_type"], event["job_id"]) == ("log_line", "demo.agent")
    assert event["data"] == {"line": "heartbeat", "level": "debug", "ts_unix": AT.timestamp()}


def test_a_run_where_neither_git_nor_a_user_is_known_still_has_its_host(monkeypatch):
    def unknown():
        raise KeyError("uid not found")

    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("getpass.getuser", unknown)
    assert origin().keys() == {"host"}
