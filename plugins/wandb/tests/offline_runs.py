"""Reads offline W&B runs back with what `wandb leet inspect` calls: its start takes no import."""

from __future__ import annotations

import json
import subprocess
import time
from collections import defaultdict
from pathlib import Path

import wandb

CORE = Path(wandb.__file__).parent / "bin" / "wandb-core"
OURS = ("training_step", "seq", "attempt", "split")


def files(run_dir):
    return sorted(
        Path(run_dir).glob("wandb/offline-run-*/*.wandb"), key=lambda p: p.stat().st_ctime
    )


def inspected(file, *options):
    """The output of wandb's own tool for a run's file."""
    place = ["--run-file", str(file), str(file.parent.parent)]
    command = [str(CORE), "leet", "inspect", "--no-observability", "--json", *options, *place]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def records(run_dir, wait_s=2.0):
    """All records of all sessions of an offline run, in order, by kind.

    Waits a little until each session has ended; that of a killed process may not.
    """
    end = time.monotonic() + wait_s
    while True:
        lines = [json.loads(x) for file in files(run_dir) for x in inspected(file).splitlines()]
        kinds = defaultdict(list)
        for line in lines:
            kinds[line["type"]].append(line.get(line["type"]))
        if len(kinds["exit"]) >= len(files(run_dir)) or time.monotonic() > end:
            return kinds
        time.sleep(0.1)


def history(run_dir, wait_s=2.0):
    """The history's items by seq: a repeat takes the place of the one before, as a reader would."""
    items = [record["item"] for record in records(run_dir, wait_s)["history"]]
    return {item["seq"]: item for item in sorted(items, key=lambda item: item["seq"])}


def summary(run_dir):
    """The last session's state, config and summary."""
    return json.loads(inspected(files(run_dir)[-1], "--summary"))


def metrics_of(item):
    return {k: v for k, v in item.items() if k not in OURS and not k.startswith("_")}
