"""The oracle: Argus's own client sends the same run to the same server; events agree by field."""

import attrs
import pytest

from art_argus.client import ArgusClient
from art_argus.events import Job, ended, point, started
from art_argus.summary import Summary
from art_core.metrics.taxonomy import builtin_taxonomy

argus_reporter = pytest.importorskip(
    "argus", reason="argus-reporter, the client to compare with, is not installed"
)
# Ids and times are each sender's own. What the server also keeps, and its client leaves out:
IS_COUNT = builtin_taxonomy().is_count
OWN = {"event_id", "timestamp"}
MORE = {"job_failed": {"error", "metrics"}, "batch_failed": {"error", "n_done", "n_failed"}}
ROWS = [
    {"loss/train": 0.5, "loss/learning_rate": 1e-5, "reward/mean": 0.25, "time/step_wall_s": 2.0},
    {"reward/mean": 0.75, "costs/train/judge": 0.125, "reward/ünïcode key": 1.0},
    {"loss/train": 0.25, "time/step_trainer_s": 3.0, "data/step_num_gradient_steps": 2.0},
]


def sent_by_the_real_client(argus, token, job, summary, run, spill):
    """Send the run with the calls that its user would write."""
    reporter = argus_reporter.ExperimentReporter(
        argus.url, run.project, auth_token=token, spill_path=str(spill), batch_id=job.batch_id
    )
    reporter.batch_start(experiment_type="agent-rl", n_total=1)
    about = {"base_model": run.base_model, "attempt": run.attempt}
    reporter.job_start(job.job_id, model=job.model, dataset=job.dataset, **about)
    for seq, metrics in enumerate(ROWS, start=1):
        extra = dict(metrics)
        named = {"train_loss": extra.pop("loss/train", None)}
        named |= {"lr": extra.pop("loss/learning_rate", None)}
        if seq == 3:
            named["batch_time_ms"] = 1500.0
        extra |= {"split": "train", "attempt": 1, "seq": seq}
        reporter.job_epoch(job.job_id, seq, **named, **extra)
    if run.status == "finished":
        metrics = summary.metrics(run.config)
        reporter.job_done(job.job_id, metrics, elapsed_s=0.0, train_epochs=3)
        reporter.batch_done(n_done=1, n_failed=0, total_elapsed_s=0.0)
    else:
        reporter.job_failed(job.job_id, reason="the run failed", elapsed_s=0.0)
        reporter.batch_failed(reason="the run failed", total_elapsed_s=0.0)
    reporter.close(timeout=10.0)


@pytest.mark.parametrize("status", ["finished", "failed"])
def test_events_agree_with_those_of_argus_own_client(
    argus, token, run, make_row, tmp_path, monkeypatch, status
):
    monkeypatch.setenv("HOME", str(tmp_path))  # where it keeps what it could not send
    monkeypatch.setenv("USER", "somebody")
    monkeypatch.delenv("LOGNAME", raising=False)
    monkeypatch.delenv("ARGUS_DISABLE", raising=False)
    run = attrs.evolve(run, status=status)
    job, summary = Job.of(run), Summary(run)
    rows = [make_row(seq, metrics) for seq, metrics in enumerate(ROWS, start=1)]
    summary.add(rows)
    sent_by_the_real_client(argus, token, job, summary, run, tmp_path / "spill.jsonl")
    theirs = list(argus.events.values())
    now = rows[0].recorded_at
    ours = [
        *started(job, run, now),
        *(point(job, row, IS_COUNT) for row in rows),
        *ended(job, run, summary, now),
    ]
    assert len(theirs) == len(ours) == 7
    for their, our in zip(theirs, ours, strict=True):
        assert our.keys() == their.keys()
        assert type(our["event_id"]) is type(their["event_id"])
        assert [our[k] for k in our.keys() - OWN - {"data"}] == [
            their[k] for k in our.keys() - OWN - {"data"}
        ]
        more = MORE.get(our["event_type"], set())
        assert {k: v for k, v in our["data"].items() if k not in more} == {
            k: v for k, v in their["data"].items() if k not in more
        }
    client = ArgusClient.to(argus.url, token)
    assert client.send(ours) == []
    client.close()
    assert len(argus.events) == 14


def test_the_real_client_finds_our_envelopes_valid(run, make_row):
    job = Job.of(run)
    for event in [
        *started(job, run, make_row(1, {}).recorded_at),
        point(job, make_row(1, {}), IS_COUNT),
    ]:
        assert argus_reporter.schema.validate_event(event)


def test_a_sign_of_life_is_the_real_clients(run, make_row):
    from art_argus.events import heartbeat

    event = heartbeat(Job.of(run), make_row(1, {}).recorded_at)
    assert argus_reporter.schema.validate_event(event)
    assert event["data"].keys() == {"line", "level", "ts_unix"}


def test_one_bad_number_costs_the_real_client_its_burst_and_us_nothing(
    argus, token, run, make_row, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    reporter = argus_reporter.ExperimentReporter(
        argus.url, "demo", auth_token=token, spill_path=str(tmp_path / "s"), batch_id="theirs"
    )
    reporter.job_epoch("job", 1, train_loss=float("nan"))
    reporter.close(timeout=5.0)
    assert argus.of_type("job_epoch") == []
    client = ArgusClient.to(argus.url, token)
    assert (
        client.send([point(Job.of(run), make_row(1, {"loss/train": float("nan")}), IS_COUNT)]) == []
    )
    client.close()
    assert len(argus.of_type("job_epoch")) == 1
