"""Which W&B run belongs to a run's directory: an id of its own, kept in `sinks/wandb.json`."""

from __future__ import annotations

import hashlib
import re
import time

from art_core import RunInfo
from art_core.files import read_json, replace_json

_LONGEST = 64


def run_id(run: RunInfo) -> str:
    """Return the W&B run's id; made on first use, so that a resume finds the same run and a new
    directory a new one.
    """
    path = run.run_dir / "sinks" / "wandb.json"
    kept = read_json(path).get("id")
    if kept is not None:
        return str(kept)
    made = new_id(run.name, f"{run.project}/{run.name}/{time.time_ns()}")
    replace_json(path, {"id": made})
    return made


def new_id(name: str, seed: str) -> str:
    """Return an id that W&B takes: letters, digits, `-` and `_` of the name, and a short hash."""
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:_LONGEST]
    return f"{readable or 'run'}-{hashlib.sha256(seed.encode()).hexdigest()[:8]}"
