"""What a run's directory knows of its W&B run, in `sinks/wandb.json`: the id, and how far wandb has
certainly come.
"""

from __future__ import annotations

import hashlib
import re
import time
from pathlib import Path
from typing import Any

from art_core import RunInfo
from art_core.base.files import read_json, replace_json

_LONGEST = 64


def run_id(run: RunInfo) -> str:
    """Return the W&B run's id; made on first use, so that a resume finds the same run and a new
    directory a new one.
    """
    kept = _read(run).get("id")
    if kept is not None:
        return str(kept)
    made = new_id(run.name, f"{run.project}/{run.name}/{time.time_ns()}")
    _keep(run, "id", made)
    return made


def durable_seq(run: RunInfo) -> int | None:
    """Return the seq up to which wandb has all rows on the disk; None before the first row."""
    return _read(run).get("durable")


def keep_durable_seq(run: RunInfo, seq: int) -> None:
    """Note how far wandb has certainly come."""
    _keep(run, "durable", seq)


def _read(run: RunInfo) -> dict[str, Any]:
    return read_json(_file(run))


def _keep(run: RunInfo, name: str, value: str | int) -> None:
    replace_json(_file(run), _read(run) | {name: value}, sync=False)


def _file(run: RunInfo) -> Path:
    return run.run_dir / "sinks" / f"{run.sink or 'wandb'}.json"


def new_id(name: str, seed: str) -> str:
    """Return an id that W&B takes: letters, digits, `-` and `_` of the name, and a short hash."""
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:_LONGEST]
    return f"{readable or 'run'}-{hashlib.sha256(seed.encode()).hexdigest()[:8]}"
