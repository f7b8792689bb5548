"""W&B without a key, without a network, and without its service: the real wandb, in a process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

pytest.importorskip("art_wandb", reason="needs art-wandb")
pytest.importorskip("psutil")
STEPS = 200

LOOP = """
import asyncio, json, sys
import art_core as art, psutil
from art_wandb import wandb_sink
base, fault, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])

async def main():
    sink = wandb_sink(init_timeout_s=2, finish_timeout_s=1)
    model = art.Model(name="m", project="p", base_path=base, sinks=[sink])
    _ = model.run
    killed = 0
    for step in range(1, 201):
        if fault == "killed" and step == 100:
            while not (service := [p for p in psutil.Process().children(recursive=True)
                                   if "wandb-core" in " ".join(p.cmdline())]):
                await asyncio.sleep(0.05)
            await asyncio.sleep(1.0)
            for process in service:
                process.kill()
                killed += 1
        await model.log(metrics={"costs/gpu": 0.25, "reward/mean": 0.5}, split="train", step=step)
        await asyncio.sleep(0.002)
    report = (await model.close(seconds))["wandb"]
    print(json.dumps({"undelivered": report.undelivered, "error": report.error, "killed": killed}))
asyncio.run(main())
"""


@pytest.fixture
def account(tmp_path, monkeypatch):
    """No key and no settings of the caller's, and no service to share."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    monkeypatch.setenv("ART_BLOCK", "argus,local")
    return monkeypatch


def loop(base, fault, seconds):
    command = [sys.executable, "-W", "ignore", "-c", LOOP, str(base), fault, str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def assert_undisturbed(base, assert_right):
    """The loop and `close` came to their ends, and no row is lost."""
    rows = assert_right(base / "p" / "models" / "m", range(1, STEPS + 1))
    assert rows[-1].metrics["costs/cum/all"] == 0.25 * STEPS


def test_without_a_key_rows_are_kept_offline(tmp_path, account, assert_right):
    said = loop(tmp_path, "none", 60.0)
    assert_undisturbed(tmp_path, assert_right)
    assert (said["undelivered"], said["error"]) == (0, None)
    assert list(tmp_path.rglob("*.wandb"))


def test_a_network_that_swallows_everything_delays_nobody_and_the_rows_follow(
    tmp_path, account, assert_right
):
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        account.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        account.setenv("WANDB_API_KEY", "0" * 40)
        said = loop(tmp_path, "none", 2.0)
    assert_undisturbed(tmp_path, assert_right)
    assert said["undelivered"] == STEPS
    account.delenv("WANDB_BASE_URL")
    account.delenv("WANDB_API_KEY")
    assert loop(tmp_path, "none", 60.0)["undelivered"] == 0


def test_a_service_that_is_killed_in_mid_run_delays_nobody_and_is_started_again(
    tmp_path, account, assert_right
):
    said = loop(tmp_path, "killed", 60.0)
    assert said["killed"] >= 1
    assert_undisturbed(tmp_path, assert_right)
    assert (said["undelivered"], said["error"]) == (0, None)
