"""Sinks that misbehave in every way: none delays the loop, loses a row or holds up the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from textwrap import dedent

import pytest

# How a sink behaves, as the module of a plugin that is installed by its entry point.
PLUGIN = """
import os, sys, time
import art_core as art

class Sink:
    def open(self, run): ...
    def write(self, rows):
        taken.extend(row.seq for row in rows)
    def close(self, run): ...

taken = []
tries = []

def once(error):
    tries.append(error)
    if len(tries) < 3:
        raise error

@art.hookimpl
def art_sinks():
    return [art.SinkSpec(name="bad", create=Sink, summary="misbehaves")]
"""


def writing(body):
    return f"real = Sink.write\ndef write(self, rows): {body}\nSink.write = write"


BEHAVIOURS = {
    "is well": ("", "all"),
    "raises in create": (
        "Real = Sink\ndef Sink():\n    once(OSError('down'))\n    return Real()",
        "all",
    ),
    "raises in open": ("Sink.open = lambda self, run: once(OSError('down'))", "all"),
    "raises in write": (writing("once(OSError('down')); real(self, rows)"), "all"),
    "raises in close": ("Sink.close = lambda self, run: once(OSError('down'))", "all"),
    "raises SystemExit": (writing("once(SystemExit(3)); real(self, rows)"), "all"),
    "raises SystemExit for ever": (writing("sys.exit(3)"), "none"),
    "raises for ever": (writing("raise OSError('down')"), "none"),
    "hangs for ever in open": ("Sink.open = lambda self, run: time.sleep(1e6)", "none"),
    "hangs for ever in write": (writing("time.sleep(1e6)"), "none"),
    "hangs for ever in close": ("Sink.close = lambda self, run: time.sleep(1e6)", "all"),
    "takes a second a row": (writing("time.sleep(len(rows)); real(self, rows)"), "some"),
    "calls sys.exit at import": ("sys.exit(7)", "set aside"),
    "raises at import": ("raise ImportError('no such library')", "set aside"),
    "has a misspelt hook": ("art_sink = art_sinks\ndel art_sinks", "set aside"),
    "gives no specs": ("art_sinks = art.hookimpl(lambda: [3])", "set aside"),
}

LOOP = """
import asyncio, json, sys
import art_core as art

async def main():
    model = art.Model(name="m", project="p", base_path=sys.argv[1])
    _ = model.run
    for step in range(1, 201):
        await model.log(metrics={"costs/gpu": 0.25, "reward/mean": 0.5}, split="train", step=step)
        await asyncio.sleep(0.001)
    module = sys.modules.get("art_bad")
    while sys.argv[3:] and len(module.taken) < int(sys.argv[3]):
        await asyncio.sleep(0.001)
    reports = await model.close(float(sys.argv[2]))
    bad = reports.get("bad")
    print(json.dumps({
        "undelivered": bad and bad.undelivered, "error": bad and bad.error,
        "taken": getattr(module, "taken", []), "problems": model.plugins.problems and
        {name: str(problem) for name, problem in model.plugins.problems.items()},
    }))
asyncio.run(main())
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install the plugin `bad` with a behaviour, in a folder of its own."""
    folder = tmp_path / "site"
    info = folder / "art_bad-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: art-bad\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[art_core]\nbad = art_bad\n")
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    monkeypatch.setenv("ART_SINKS", "bad")

    def installed(behaviour):
        (folder / "art_bad.py").write_text(dedent(PLUGIN) + behaviour + "\n")

    return installed


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_a_sink_that(behaviour, tmp_path, monkeypatch, install, assert_right):
    """Neither the loop nor `close` waits for it: those that hang would hold them up for ever."""
    code, outcome = BEHAVIOURS[behaviour]
    install(code)
    if outcome == "set aside":
        # What can't be loaded can't be named either: the run goes on with the other default sinks.
        monkeypatch.setenv("ART_BLOCK", "wandb,argus")
        monkeypatch.delenv("ART_SINKS")
    command = [sys.executable, "-c", LOOP, str(tmp_path), "60" if outcome == "all" else "0.3"]
    if behaviour == "hangs for ever in close":
        command[-1:] = ["0.3", "200"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    rows = assert_right(tmp_path / "p" / "models" / "m", range(1, 201))
    assert rows[-1].metrics["costs/cum/all"] == 50.0
    status = json.loads((tmp_path / "p" / "models" / "m" / "status.json").read_text())["status"]
    assert status == "finished"
    if outcome == "set aside":
        assert "bad" in said["problems"]
        return
    # In order, without a gap; and the rows reported as missing are the missing ones.
    assert said["taken"] == list(range(1, len(said["taken"]) + 1))
    missing = 200 - len(said["taken"])
    if outcome == "some":  # it may take a row after it was reported
        assert missing <= said["undelivered"]
    else:
        assert missing == said["undelivered"]
    assert (said["undelivered"] == 0) == (outcome == "all")
    assert (said["error"] is None) == (outcome == "all" and behaviour != "hangs for ever in close")


def test_what_a_bad_sink_did_not_take_it_gets_when_it_is_well_again(
    tmp_path, install, assert_right
):
    taken = []
    for behaviour in ("raises for ever", "hangs for ever in write", "is well"):
        code, outcome = BEHAVIOURS[behaviour]
        install(code)
        command = [sys.executable, "-c", LOOP, str(tmp_path), "60" if outcome == "all" else "0.3"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        taken.append(json.loads(done.stdout.splitlines()[-1])["taken"])
    assert taken == [[], [], list(range(1, 601))]
    assert_right(tmp_path / "p" / "models" / "m", range(1, 601))
