import json
import os
import signal
import subprocess
import sys

import attrs
import pytest

import art_core as art
from art_argus import argus_sink, stop_requested
from art_argus.client import ArgusClient
from art_argus.sink import ArgusSink
from art_core.cli.main import main
from waiting import until

LOG_AND_DIE = """
import asyncio, os, sys
import art_core as art
from art_argus import argus_sink

async def main():
    sink = argus_sink(sys.argv[1], sys.argv[2], task="mazes")
    model = art.Model(name="agent", project="demo", base_path=sys.argv[3], sinks=[sink])
    for step in range(1, 8):
        await model.log(metrics={"reward/mean": step / 8}, split="train", step=step)
    print("logged", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.fixture
def make_sink(argus, token):
    made = []

    def make(**options):
        made.append(ArgusSink(client=ArgusClient.to(argus.url, token), **options))
        return made[-1]

    yield make
    for sink in made:
        if sink._opened:
            sink._opened.watch.close()
        sink.client.close()


def kinds(argus):
    return [event["event_type"] for event in argus.events.values()]


async def test_a_run_arrives_from_its_start_to_its_results(argus, token, tmp_path):
    sink = argus_sink(argus.url, token, task="sums")
    model = art.Model(name="agent", project="demo", base_path=tmp_path, sinks=[sink])
    await model.log(metrics={"reward/mean": 0.75, "costs/gpu": 0.5}, split="train", step=1)
    await model.log(metrics={"reward": 0.5}, step=1)
    await model.log(metrics={"reward/mean": 0.25, "costs/gpu": 0.5}, split="train", step=2)
    assert (await model.close())["argus"].undelivered == 0
    assert kinds(argus) == [
        "batch_start", "job_start", "job_epoch", "log_line", "job_epoch", "job_done", "batch_done",
    ]  # fmt: skip
    (done,) = argus.of_type("job_done")
    metrics = done["data"]["metrics"]
    assert (metrics["reward/mean"], metrics["reward/mean_best"]) == (0.25, 0.75)
    assert (metrics["val/reward"], metrics["costs/cum/all"]) == (0.5, 1.0)
    assert argus.of_type("job_start")[0]["data"]["dataset"] == "sums"
    written = [json.loads(x) for x in (model.run_dir / "history.jsonl").read_text().splitlines()]
    assert {key for row in written for key in row if "/" in key} <= metrics.keys()
    assert (metrics["train_epochs"], type(metrics["train_epochs"])) == (2, int)
    events = sorted(
        [*argus.of_type("job_epoch"), *argus.of_type("log_line")], key=lambda e: e["data"]["seq"]
    )
    for row, event in zip(written, events, strict=True):
        assert {k: v for k, v in row.items() if "/" in k} == {
            k: v for k, v in event["data"].items() if "/" in k
        }


async def test_device_memory_that_is_logged_is_shown(argus, token, tmp_path):
    sink = argus_sink(argus.url, token)
    async with art.Model(name="a", project="p", base_path=tmp_path, sinks=[sink]) as model:
        for step, (now, peak) in enumerate([(100, 300), (200, 400)], start=1):
            memory = {"system/gpu_memory_mb": now, "system/gpu_memory_peak_mb": peak}
            await model.log(metrics=memory, split="train", step=step)
    metrics = argus.of_type("job_done")[0]["data"]["metrics"]
    assert (metrics["GPU_Memory"], metrics["GPU_Memory_Peak"]) == (200.0, 400.0)


async def test_a_run_that_raises_has_failed_on_the_board_with_its_last_metrics(
    argus, token, tmp_path
):
    sink = argus_sink(argus.url, token)
    with pytest.raises(ZeroDivisionError):
        async with art.Model(name="a", project="p", base_path=tmp_path, sinks=[sink]) as model:
            await model.log(metrics={"reward/mean": 0.75}, split="train", step=1)
            _ = 1 / 0
    assert kinds(argus)[-2:] == ["job_failed", "batch_failed"]
    failed = argus.of_type("job_failed")[0]["data"]
    assert failed["metrics"]["reward/mean"] == 0.75
    assert failed["reason"] == failed["error"] == "ZeroDivisionError: division by zero"
    assert argus.of_type("batch_failed")[0]["data"]["reason"] == failed["reason"]


def test_the_reason_of_a_failure_is_told_without_secrets_also_later(
    argus, token, tmp_path, monkeypatch
):
    model = art.Model(name="a", project="p", base_path=tmp_path, sinks=[])
    model.run.record("train", 1, metrics={"reward/mean": 0.75})
    model.run.close("failed", error=RuntimeError(f"401: the key {token} is refused\nsent: {token}"))
    monkeypatch.setenv("ARGUS_URL", argus.url)
    monkeypatch.setenv("ARGUS_TOKEN", token)
    assert main(["sync", "a", "--sink", "argus", "--dir", str(tmp_path)]) == 0
    (failed,) = argus.of_type("job_failed")
    assert failed["data"]["reason"] == "RuntimeError: 401: the key *** is refused"
    assert token not in (model.run_dir / "status.json").read_text()


async def test_a_resumed_run_goes_on_in_the_same_batch_and_its_results_cover_all(
    argus, token, tmp_path
):
    for step, reward in [(1, 0.75), (2, 0.25)]:
        sink = argus_sink(argus.url, token)
        async with art.Model(name="a", project="p", base_path=tmp_path, sinks=[sink]) as model:
            await model.log(metrics={"reward/mean": reward}, split="train", step=step)
    assert {e["batch_id"] for e in argus.events.values()} == {"p-a"}
    assert [e["data"]["epoch"] for e in argus.of_type("job_epoch")] == [1, 2]
    first, second = argus.of_type("job_done")
    assert second["data"]["metrics"]["reward/mean_best"] == 0.75
    assert second["data"]["metrics"]["train_epochs"] == 2
    assert first["event_id"] != second["event_id"]


def log_and_die(argus, token, tmp_path):
    command = [sys.executable, "-c", LOG_AND_DIE, argus.url, token, str(tmp_path)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"ART_SINKS": ""})
    assert child.stdout.readline() == b"logged\n"
    until(lambda: len(argus.of_type("job_epoch")) >= 3)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    # The worst case: what was delivered was not yet noted.
    for cursor in tmp_path.glob("**/argus.cursor"):
        cursor.unlink()


async def test_delivery_after_a_kill_gives_no_duplicates(argus, token, tmp_path):
    log_and_die(argus, token, tmp_path)
    sink = argus_sink(argus.url, token)
    async with art.Model(name="agent", project="demo", base_path=tmp_path, sinks=[sink]) as model:
        await model.log(metrics={"reward/mean": 1.0}, split="train", step=8)
    assert [e["data"]["seq"] for e in argus.of_type("job_epoch")] == list(range(1, 9))
    assert argus.deduplicated >= 3
    assert len(argus.of_type("job_done")) == 1


def test_a_killed_run_can_be_told_as_failed_later(argus, token, tmp_path, monkeypatch, capsys):
    log_and_die(argus, token, tmp_path)
    monkeypatch.delenv("ARGUS_URL", raising=False)  # the address was given in code
    monkeypatch.setenv("ARGUS_TOKEN", token)
    assert main(["sync", "agent", "--sink", "argus", "--dir", str(tmp_path)]) == 0
    assert {e["data"]["dataset"] for e in argus.of_type("job_start")} == {"mazes"}
    assert [e["data"]["seq"] for e in argus.of_type("job_epoch")] == list(range(1, 8))
    (failed,) = argus.of_type("job_failed")
    assert failed["data"]["reason"] == "the run was killed"
    assert failed["data"]["metrics"]["reward/mean"] == 0.875


def test_rows_that_arrived_before_a_failure_are_not_sent_again(argus, make_sink, run, make_row):
    sink, rows = make_sink(), [make_row(seq, {"reward/mean": 0.5}) for seq in range(1, 251)]
    sink.open(run)
    argus.answers = [(200, {}, "{}")]
    with pytest.raises(art.SinkError):
        sink.write(rows)
    sink.write(rows[:100])
    argus.posts.clear()
    sink.write(rows)
    assert argus.posts == [100, 50]
    assert argus.deduplicated == 0


def test_a_refused_row_is_said_and_set_aside_while_the_others_arrive(
    argus, make_sink, run, make_row, caplog
):
    sink = make_sink()
    sink.open(run)
    sink.write([make_row(1, {}), make_row(2, {}, step=2.5), make_row(3, {})])
    assert [e["data"]["epoch"] for e in argus.of_type("job_epoch")] == [1, 3]
    (line,) = (run.run_dir / "sinks" / "argus.refused.jsonl").read_text().splitlines()
    refused = json.loads(line)
    assert refused["event"]["data"]["epoch"] == 2.5
    assert "valid integer" in refused["reason"]
    assert "Argus refused a job_epoch" in caplog.text


def test_results_cover_rows_that_were_written_before_the_sink_was_opened(
    argus, make_sink, run, make_row
):
    run.run_dir.mkdir()
    lines = make_row(1, {"reward/mean": 0.75}).to_line() + b'{"torn'
    (run.run_dir / "history.jsonl").write_bytes(lines)
    sink = make_sink()
    sink.open(run)
    sink.write([make_row(2, {"reward/mean": 0.5})])
    sink.close(attrs.evolve(run, status="finished"))
    (done,) = argus.of_type("job_done")
    assert done["data"]["metrics"]["reward/mean_best"] == 0.75


def test_a_close_that_failed_is_tried_again_and_one_too_many_does_nothing(
    argus, make_sink, run, make_row
):
    sink, finished = make_sink(), attrs.evolve(run, status="finished")
    sink.open(run)
    sink.write([make_row(1, {})])
    argus.answers = [(500, {}, "")]
    with pytest.raises(art.SinkError):
        sink.close(finished)
    sink.close(finished)
    sink.close(finished)
    assert len(argus.of_type("job_done")) == len(argus.of_type("batch_done")) == 1


def test_long_rollouts_give_signs_of_life(argus, make_sink, run):
    sink = make_sink(heartbeat_s=0.05, stop_poll_s=9.0)
    sink.open(run)
    until(lambda: len(argus.of_type("log_line")) >= 2)
    assert argus.of_type("log_line")[0]["data"]["line"] == "heartbeat"


def test_a_busy_run_needs_no_sign_of_life(argus, make_sink, run, make_row):
    sink = make_sink(heartbeat_s=30.0, stop_poll_s=0.02)
    sink.open(run)
    until(lambda: len(argus.asked) >= 5)
    assert argus.of_type("log_line") == []


@pytest.mark.parametrize("spelling", ["requested", "stop_requested"])
def test_the_stop_button_is_a_flag_that_the_trainer_reads(argus, make_sink, run, spelling):
    sink = make_sink(stop_poll_s=0.02)
    sink.open(run)
    until(lambda: argus.asked)
    assert not stop_requested(run)
    argus.stop = {spelling: True}
    until(lambda: stop_requested(run))


def test_a_stop_of_an_earlier_attempt_is_forgotten(argus, make_sink, run):
    flag = run.run_dir / "sinks" / "argus.stop"
    flag.parent.mkdir(parents=True)
    flag.touch()
    make_sink().open(run)
    assert not stop_requested(run)


def test_a_watch_survives_a_server_that_is_away(argus, make_sink, run):
    sink = make_sink(stop_poll_s=0.02)
    sink.open(run)
    argus.answers = [(500, {}, ""), (200, {}, "<html>"), (200, {}, "[]")]
    argus.stop = {"requested": True}
    until(lambda: stop_requested(run))
    assert argus.answers == []


def test_a_sink_that_is_opened_again_keeps_one_watch(make_sink, run):
    sink = make_sink()
    sink.open(run)
    first = sink._opened.watch
    sink.open(run)
    assert not first._thread.is_alive()
    assert sink._opened.watch._thread.is_alive()


class Games:
    """A plugin with a count of its own."""

    @art.hookimpl
    def art_metrics(self):
        return [art.MetricSpec(key="chess/games", unit="game", help="games played", combine="sum")]


async def test_counts_of_the_model_s_own_plugins_are_whole_numbers_and_add_up(
    argus, token, tmp_path
):
    plugins = art.Plugins.discover()
    plugins.register(Games(), "games")
    sink = argus_sink(argus.url, token)
    given = {"name": "a", "project": "p", "base_path": tmp_path, "sinks": [sink]}
    async with art.Model(**given, plugins=plugins) as model:
        await model.log(metrics={"reward/mean": 0.5, "chess/games": 2}, split="train", step=1)
        await model.log(metrics={"chess/games": 3}, split="train", step=1)
        await model.log(metrics={"loss/train": 0.5}, split="train", step=1)
    first, second = argus.of_type("job_epoch")
    assert (first["data"]["chess/games"], second["data"]["train_loss"]) == (2, 0.5)
    (line,) = [e["data"] for e in argus.of_type("log_line") if "step" in e["data"]]
    assert (line["step"], line["chess/games"]) == (1, 5)
    (done,) = argus.of_type("job_done")
    games = done["data"]["metrics"]["chess/games"]
    assert (games, type(games)) == (5, int)
    assert done["data"]["metrics"]["train_epochs"] == 1
