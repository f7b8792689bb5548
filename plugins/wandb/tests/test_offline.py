"""A real model's run on a real offline W&B run, read back with wandb's own tool."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import attrs
import psutil
import pytest

import art_core as art
from art_core.testing.sick_runs import sick_run
from art_core.testing.sink import ended, row, run_in, some_rows
from art_wandb import wandb_sink
from art_wandb.plugin import WandbOptions
from art_wandb.session import new_id, run_id
from offline_runs import OURS, files, history, metrics_of, records, summary


def model(tmp_path, name="agent", sink=None, **more):
    sinks = [sink or wandb_sink()]
    return art.Model(name=name, project="p", base_path=tmp_path, sinks=sinks, **more)


async def log_a_bit(one, steps=range(1, 7)):
    for step in steps:
        metrics = {
            "reward/mean": [0.5, 0.75, 0.25][step % 3],
            "costs/train/judge": 0.1 * step,
            "costs/train/judge/retry" if step > 9 else "costs/train/rubric": 0.25,
            "reward/größe": 1 / 3,
        }
        late = {"loss/own": -1e-9} if step > 3 else {}
        await one.log(metrics=metrics | late, split="train", step=step)
        if step % 2 == 0:
            await one.log(metrics={"reward": step / 8}, split="val", step=step - 1)
            await one.log(metrics={"or_not": 1.0}, split="val-hard", step=1)


def logged(run_dir):
    return [
        art.MetricsRow.from_line(line)
        for line in (run_dir / "history.jsonl").read_bytes().splitlines()
    ]


def shown(run_dir):
    """Each row with the metrics that W&B gets: totals only if it is not behind."""
    furthest = None
    for sent in logged(run_dir):
        behind = sent.is_behind(furthest)
        yield sent, (sent.without_totals() if behind else sent).metrics
        furthest = furthest if behind else sent


def assert_key_by_key(run_dir):
    items = history(run_dir)
    for sent, metrics in shown(run_dir):
        item = items.pop(sent.seq)
        assert metrics_of(item) == metrics
        assert [item[k] for k in OURS] == [sent.step, sent.seq, sent.attempt, sent.split]
        assert item["_timestamp"] == pytest.approx(sent.recorded_at.timestamp(), abs=1e-3)
    assert items == {}


async def test_a_run_is_kept_offline_key_by_key_when_there_is_no_account(tmp_path, caplog):
    config = {"lr": 1e-5, "nested": {"a": [1, 2]}}
    one = model(tmp_path, "agent é, 1", wandb_sink(tags=["first"], group="g"), config=config)
    await log_a_bit(one)
    assert (await one.close())["wandb"].error is None
    assert_key_by_key(one.run_dir)
    kept = summary(one.run_dir)
    assert kept["config"] == config | {
        "art": {"project": "p", "name": "agent é, 1", "base_model": None}
    }
    assert (kept["project"], kept["name"], kept["tags"]) == ("p", "agent é, 1", ["first"])
    assert (kept["state"], kept["exit_code"]) == ("finished", 0)
    said = [m for m in caplog.messages if m.startswith("W&B:")]
    assert len(said) == 1 and "no WANDB_API_KEY" in said[0] and str(one.run_dir) in said[0]


async def test_wandb_leaves_the_end_of_the_program_to_others(tmp_path):
    before = sys.exit, sys.excepthook
    traced = model(tmp_path)
    await traced.log(metrics={"reward/mean": 0.5}, split="train", step=1)
    await traced.close()
    for hook, now in zip(before, (sys.exit, sys.excepthook), strict=True):
        assert now is hook or not now.__module__.startswith("wandb")


async def test_every_section_is_drawn_over_the_training_step(tmp_path):
    @art.hookimpl
    def art_metrics():
        return [art.MetricSpec(key="offpolicy/lag", unit="step", help="age of the weights")]

    one = model(tmp_path)
    await log_a_bit(one, range(1, 3))
    await one.close()
    defined = records(one.run_dir)["metric"]
    globs = {m["glob_name"]: m["step_metric"] for m in defined if "glob_name" in m}
    assert set(globs.values()) == {"training_step"}
    known = ["reward", "loss", "throughput", "costs", "time", "data", "train", "val", "test"]
    assert {f"{section}/*" for section in [*known, "val-hard"]} <= set(globs)
    assert "training_step" in {m.get("name") for m in defined}
    # No `step=`: W&B's own counter goes up by one a row, whatever the training step is.
    assert [h["step"]["num"] for h in records(one.run_dir)["history"]] == [0, 1, 2, 3]


async def test_sections_of_plugins_are_defined_before_their_first_value(tmp_path, monkeypatch):
    spec = art.MetricSpec(key="offpolicy/lag", unit="step", help="", direction="lower")

    class Plugin:
        @art.hookimpl
        def art_metrics(self):
            return [spec]

    discover = art.Plugins.discover

    def with_plugin():
        plugins = discover()
        plugins.register(Plugin(), "more")
        return plugins

    monkeypatch.setattr(art.Plugins, "discover", with_plugin)
    sink = wandb_sink().create()
    run = run_in(tmp_path)
    sink.open(run)
    sink.close(ended(run))
    assert "offpolicy/*" in {m.get("glob_name") for m in records(run.run_dir)["metric"]}


async def test_the_summary_holds_the_last_and_the_best_by_direction(tmp_path):
    one = model(tmp_path)
    for step, (reward, failed) in enumerate([(0.25, 0.5), (0.75, 0.125), (0.5, 0.25)], start=1):
        await one.log(metrics={"reward": reward, "exception_rate": failed}, split="val", step=step)
    await one.close()
    kept = summary(one.run_dir)["summary"]
    assert kept["val/reward"] == {"last": 0.5, "max": 0.75}
    assert kept["val/exception_rate"] == {"last": 0.25, "min": 0.125}


@pytest.mark.parametrize(("status", "code"), [("failed", 1), ("killed", 1), ("running", 0)])
async def test_a_failed_run_is_failed_on_wandb_too(tmp_path, status, code):
    one = model(tmp_path)
    await one.log(metrics={"reward": 1.0}, step=1)
    await one.close(status=status)
    assert summary(one.run_dir)["exit_code"] == code


async def test_a_resumed_run_has_the_same_id_and_only_its_new_rows(tmp_path):
    first = model(tmp_path)
    await log_a_bit(first, range(1, 3))
    await first.close()
    second = model(tmp_path)
    await log_a_bit(second, range(3, 5))
    await second.close()
    runs = records(second.run_dir)["run"]
    assert len(runs) == 2 and len({run["run_id"] for run in runs}) == 1
    assert [h["item"]["seq"] for h in records(second.run_dir)["history"]] == list(range(1, 9))
    assert_key_by_key(second.run_dir)


async def test_no_code_and_no_console_go_along_unless_asked_for(tmp_path, monkeypatch):
    one = model(tmp_path)
    await one.log(metrics={"reward": 1.0}, step=1)
    print("a secret on standard output")
    await one.close()
    found = records(one.run_dir)
    assert not [kind for kind in found if "output" in kind]
    kept = [p for p in one.run_dir.rglob("*") if p.is_file()]
    assert not [p for p in kept if p.suffix in {".py", ".patch"}]
    assert not any(b"a secret on standard output" in p.read_bytes() for p in kept)


async def test_trajectories_go_along_as_a_table_on_request(tmp_path):
    one = model(tmp_path, sink=wandb_sink(trajectories=True))
    messages = [{"role": "user", "content": "größer?"}, {"role": "assistant", "content": "ja"}]
    tries = [
        art.Trajectory(messages_and_choices=messages, reward=reward, metrics={"ok": True})
        for reward in (0.0, 1.0)
    ]
    await one.log([art.TrajectoryGroup(tries)], split="train", step=1)
    await one.close()
    (table,) = one.run_dir.rglob("*.table.json")
    kept = json.loads(table.read_text())
    assert kept["columns"] == ["step", "group", "trajectory", "reward", "metrics", "messages"]
    assert [line[:4] for line in kept["data"]] == [[1, 0, 0, 0.0], [1, 0, 1, 1.0]]
    assert json.loads(kept["data"][0][5]) == messages


async def test_without_the_request_trajectories_stay_at_home(tmp_path):
    one = model(tmp_path)
    await one.log([art.Trajectory(messages_and_choices=[], reward=1.0)], split="train", step=1)
    await one.close()
    assert not list(one.run_dir.rglob("*.table.json"))


def kill_service():
    services = [p for p in psutil.Process().children() if "wandb-core" in " ".join(p.cmdline())]
    for service in services:
        service.kill()
        service.wait(10)
    assert services


async def test_a_service_killed_mid_run_loses_nothing_and_delays_nobody(tmp_path):
    one = model(tmp_path)
    await log_a_bit(one, range(1, 7))
    await asyncio.sleep(0.5)
    kill_service()
    await one.log(metrics={"reward/mean": 1.0}, split="train", step=7)
    report = (await one.close(30.0))["wandb"]
    assert (report.undelivered, report.error) == (0, None)
    # The killed service left no exit record, and perhaps no rows either.
    items = history(one.run_dir, wait_s=0)
    assert sorted(items) == [sent.seq for sent in logged(one.run_dir)]
    assert all(metrics_of(items[sent.seq]) == metrics for sent, metrics in shown(one.run_dir))


def test_what_the_service_had_but_had_not_kept_is_sent_again_at_the_close(tmp_path):
    run = run_in(tmp_path)
    rows = some_rows(5)
    (run.run_dir / "history.jsonl").write_bytes(b"torn\n" + b"".join(r.to_line() for r in rows))
    sink = wandb_sink().create()
    sink.open(run)
    sink.write(rows)
    kill_service()
    with pytest.raises(Exception, match="onnection"):
        sink.close(ended(run))
    sink.close(ended(run))
    assert sorted(history(run.run_dir, wait_s=0)) == [1, 2, 3, 4, 5]


def test_what_a_killed_process_had_not_kept_is_sent_again_when_nothing_new_comes(tmp_path):
    run = run_in(tmp_path)
    rows = some_rows(5)
    (run.run_dir / "history.jsonl").write_bytes(b"".join(r.to_line() for r in rows))
    (run.run_dir / "sinks").mkdir()
    (run.run_dir / "sinks" / "wandb.json").write_text('{"id": "agent-1", "durable": 3}')
    sink = wandb_sink().create()
    sink.open(run)
    sink.close(ended(run))
    assert sorted(history(run.run_dir)) == [4, 5]


@pytest.fixture
def black_hole(monkeypatch):
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        yield


SCRIPT = """
import asyncio, sys
import art_core as art
from art_core.testing.sick_runs import sick_run
from art_wandb import wandb_sink
async def main():
    sink = wandb_sink(init_timeout_s=2, finish_timeout_s=1)
    model = art.Model(name="agent", project="p", base_path=sys.argv[1], sinks=[sink])
    for step in range(200):
        await model.log(metrics={"reward": 1.0}, step=step)
        await asyncio.sleep(0)
    print((await model.close(1.0))["wandb"].undelivered)
asyncio.run(main())
"""


def test_a_network_that_swallows_everything_delays_nobody(tmp_path, black_hole):
    """Neither the loop nor `close` nor the end of the process waits for an answer."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert int(done.stdout) == 200


def test_a_run_that_could_not_be_opened_says_so_in_time(tmp_path, black_hole):
    sink = wandb_sink(init_timeout_s=1).create()
    with pytest.raises(art.SinkError, match="can't be reached.*timed out"):
        sink.open(run_in(tmp_path))


@pytest.fixture
def half_dead(monkeypatch):
    """A server that greets and then answers nothing."""

    class Answers(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.end_headers()

        def do_POST(self):
            gone.wait(30)

        def log_message(self, *args):
            pass

    gone = threading.Event()
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        yield
        gone.set()
        server.shutdown()


def test_a_run_that_could_not_be_opened_can_be_tried_again(tmp_path, half_dead):
    sink = wandb_sink(init_timeout_s=1).create()
    run = run_in(tmp_path)
    for _ in range(2):
        with pytest.raises(Exception, match="deadline|timed out") as error:
            sink.open(run)
        # The error of wandb's service for a run that it did not release.
        assert "in use" not in str(error.value)


async def test_rows_wait_while_the_network_is_away_and_follow_later(tmp_path, black_hole):
    one = model(tmp_path, sink=wandb_sink(init_timeout_s=1))
    await log_a_bit(one, range(1, 3))
    assert (await one.close(2.0))["wandb"].undelivered == 4
    later = model(tmp_path, sink=wandb_sink(mode="offline"))
    _ = later.run
    assert (await later.close())["wandb"].undelivered == 0
    assert_key_by_key(later.run_dir)


@pytest.mark.parametrize("name", ["a b", "ä:;,#?/'", "", "x" * 300, "..", "plain-name_1"])
def test_an_id_is_made_of_what_wandb_takes(name):
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,128}", new_id(name, "seed"))
    assert new_id(name, "seed") != new_id(name, "other seed")


def test_an_id_belongs_to_the_directory(tmp_path):
    run = run_in(tmp_path / "one")
    assert run_id(run) == run_id(attrs.evolve(run, attempt=2))
    assert run_id(run) != run_id(run_in(tmp_path / "two"))


def test_an_unknown_option_is_refused_at_once():
    with pytest.raises(TypeError, match="colour"):
        wandb_sink(colour="blue")


def test_the_sink_is_a_default_one_where_a_key_is_known(tmp_path, monkeypatch):
    assert not wandb_sink().default
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 0123\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert wandb_sink().default
    monkeypatch.delenv("NETRC")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert wandb_sink().default


def test_disabled_means_nothing_is_written(tmp_path):
    run = run_in(tmp_path)
    sink = wandb_sink(mode="disabled").create()
    sink.open(run)
    sink.write([row(1, reward__mean=0.5)])
    sink.close(ended(run))
    assert files(run.run_dir) == []


def test_a_sink_names_its_options_and_is_made_again_from_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {
        "project": "p",
        "entity": "team",
        "tags": ("a", "b"),
        "dir": "files",
        "mode": "offline",
    }
    options = wandb_sink(**given).options
    assert options == given | {"tags": ["a", "b"], "dir": str(tmp_path / "files")}
    assert wandb_sink(**options).options == options
    assert wandb_sink().options == {}


def test_a_new_finding_of_the_doctor_is_an_alert_once(tmp_path, monkeypatch):
    run = art.RunInfo(project="demo", name="m", run_dir=tmp_path, sink="wandb")
    rows = sick_run("truncation", 3).rows
    (tmp_path / "history.jsonl").write_bytes(b"".join(row.to_line() for row in rows))
    monkeypatch.setenv("ART_WANDB_ALERTS", "1")
    for part in (rows[:-5], rows[-20:]):  # a second process gets some rows again
        sink = wandb_sink(mode="offline").create()
        sink.open(run)
        sink.write(list(part))
        sink.close(run)
    (alert,) = records(tmp_path)["alert"]
    assert alert["title"].startswith("truncation: from step ")
    assert "of the attempts are cut off by max_tokens" in alert["text"]
    assert wandb_sink(alerts=True).options == {"alerts": True}
    assert not WandbOptions(alerts=False).raises_alerts()
