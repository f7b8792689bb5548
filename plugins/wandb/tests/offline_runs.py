"""Reads offline W&B runs back with wandb's own tool."""

from __future__ import annotations

import json
import subprocess
import sysconfig
import time
from pathlib import Path

WANDB = Path(sysconfig.get_path("scripts")) / "wandb"
OURS = ("training_step", "seq", "attempt", "split")


def files(run_dir):
    return sorted(Path(run_dir).glob("wandb/offline-run-*/*.wandb"), key=lambda p: p.stat().st_ctime)


def inspected(file, *options):
    """What wandb's own tool says of a run's file."""
    command = [str(WANDB), "leet", "inspect", "--json", *options, str(file)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def records(run_dir, kind):
    """All records of a kind, of all sessions of an offline run, in order."""
    found = [json.loads(x) for file in files(run_dir) for x in inspected(file).splitlines()]
    return [record[kind] for record in found if record["type"] == kind]


def summary(run_dir):
    return json.loads(inspected(files(run_dir)[-1], "--summary"))


def history(run_dir):
    """The history's items by seq: a repeat takes the place of the one before, as a reader would."""
    items = [record["item"] for record in records(run_dir, "history")]
    return {item["seq"]: item for item in sorted(items, key=lambda item: item["seq"])}


def metrics_of(item):
    return {k: v for k, v in item.items() if k not in OURS and not k.startswith("_")}


def until(true, seconds=20.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.05)
