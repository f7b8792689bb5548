"""The W&B run of a run: its settings, its id and the rows that are certainly on the disk, both kept
in `sinks/wandb.json`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
import wandb

from art_core import RunInfo, SinkError
from art_core.base.files import read_json, replace_json
from art_wandb.plugin import WandbOptions

_MAX_NAME = 64


def run_id(run: RunInfo) -> str:
    """Return the W&B run's id, made on first use: a resume has the same id, a new directory
    another.
    """
    stored = _read(run).get("id")
    if stored is not None:
        return str(stored)
    own_id = new_id(run.name, f"{run.project}/{run.name}/{time.time_ns()}")
    _keep(run, "id", own_id)
    return own_id


def durable_seq(run: RunInfo) -> int | None:
    """Return the seq up to which wandb has written all rows to the disk; None before the first."""
    return _read(run).get("durable")


def keep_durable_seq(run: RunInfo, seq: int) -> None:
    """Store the seq up to which wandb has certainly written all rows to the disk."""
    _keep(run, "durable", seq)


def _read(run: RunInfo) -> dict[str, Any]:
    return read_json(_file(run))


def _keep(run: RunInfo, name: str, value: str | int) -> None:
    replace_json(_file(run), _read(run) | {name: value}, sync=False)


def _file(run: RunInfo) -> Path:
    return run.run_dir / "sinks" / f"{run.sink or 'wandb'}.json"


def new_id(name: str, seed: str) -> str:
    """Return an id that W&B takes: letters, digits, `-` and `_` of the name, and a short hash."""
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:_MAX_NAME]
    return f"{readable or 'run'}-{hashlib.sha256(seed.encode()).hexdigest()[:8]}"


log = logging.getLogger("art_core")

FLUSH_S = 1.0

_open: dict[str, wandb.Run] = {}
"""The runs of this process by id: wandb's service opens an id only once at a time."""


def open_run(run: RunInfo, options: WandbOptions) -> wandb.Run:
    """Return the W&B run of a run, new or resumed.

    Raises SinkError when W&B can't be reached in `init_timeout_s`, else what wandb raises.
    """
    # wandb's usage analytics wait for the network at exit, past every timeout.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    mode: Any = options.chosen_mode()
    own_id = run_id(run)
    if own_id in _open:
        _finish_quietly(_open[own_id])
    with _pythons_hooks():
        _reach(mode, options.init_timeout_s)
        try:
            opened = _init(run, options, own_id, mode)
        except Exception:
            _forget_failed_run()
            raise
    _open[own_id] = opened
    return opened


def _init(run: RunInfo, options: WandbOptions, own_id: str, mode: Any) -> wandb.Run:
    return wandb.init(
        project=options.project or run.project,
        entity=options.entity,
        name=run.name,
        id=own_id,
        resume="allow",
        reinit="create_new",
        mode=mode,
        group=options.group,
        job_type=options.job_type,
        tags=options.tags,
        notes=options.notes,
        dir=options.dir or os.environ.get("WANDB_DIR") or run.run_dir,
        config=config_of(run),
        allow_val_change=True,
        settings=_settings(options),
    )


@contextmanager
def _pythons_hooks() -> Iterator[None]:
    """Restore `sys.exit` and `sys.excepthook`, which wandb replaces to see how a program ends: the
    sink's `close` gets that, and Ctrl-C must print one line.
    """
    exit_, hook = sys.exit, sys.excepthook
    try:
        yield
    finally:
        if sys.exit.__module__.startswith("wandb"):
            sys.exit = exit_
        if sys.excepthook.__module__.startswith("wandb"):
            sys.excepthook = hook


def finish(run: wandb.Run, exit_code: int) -> None:
    """Finish a W&B run; wait for uploads at most `finish_timeout_s`."""
    run.finish(exit_code=exit_code)
    _open.pop(run.id, None)


def config_of(run: RunInfo) -> dict[str, Any]:
    """Return the config of the W&B run: the user's, with the names of the run."""
    about = {"project": run.project, "name": run.name, "base_model": run.base_model}
    stored: dict[str, Any] = json.loads(json.dumps({**run.config, "art": about}, default=str))
    return stored


def abandon(run: wandb.Run | None, error: BaseException) -> None:
    """Finish a W&B run after an error, so that it can be opened again.

    If the error means that wandb's service died, the next run starts another one. A living service
    is not stopped: the process may have other W&B runs.
    """
    if run is not None:
        _finish_quietly(run)
    if isinstance(error, ConnectionError) or type(error).__name__ == "MailboxClosedError":
        _teardown()


def _reach(mode: str | None, seconds: float) -> None:
    """Request any answer of W&B, before `wandb.init` takes the run's id and waits."""
    settings = wandb.setup().settings
    url = os.environ.get("WANDB_BASE_URL") or settings.base_url
    if (mode or os.environ.get("WANDB_MODE") or settings.mode) not in {"online", "run", "shared"}:
        return
    try:
        requests.head(url, timeout=seconds, allow_redirects=False)
    except requests.RequestException as error:
        raise SinkError(
            f"W&B at {url} can't be reached: {error}",
            "The rows wait in the run's log; WANDB_MODE=offline keeps them for `wandb sync`.",
        ) from error


def _forget_failed_run() -> None:
    """Stop wandb's service unless other runs use it: as long as it lives, it reports the id of a
    run that could not be opened as being in use.
    """
    if wandb.run is None and not _open:
        _teardown()


def _teardown() -> None:
    try:
        wandb.teardown()
    except Exception as error:
        log.debug("wandb's service was gone: %s", error)


def _finish_quietly(run: wandb.Run) -> None:
    try:
        finish(run, exit_code=1)
    except Exception as error:
        log.debug("a W&B run could not be finished: %s", error)
    _open.pop(run.id, None)


def _settings(options: WandbOptions) -> wandb.Settings:
    code = options.saves_code()
    wanted = {
        "console": "off",
        "save_code": code,
        "disable_code": not code,
        "disable_git": not code,
        "init_timeout": options.init_timeout_s,
        "login_timeout": options.init_timeout_s,
        "finish_timeout": options.finish_timeout_s,
        # wandb prints to standard output, which belongs to the user's program.
        "silent": True,
        # Not public; left out if a later wandb lacks it. The default is 15 s.
        "x_transaction_log_flush_interval": FLUSH_S,
    }
    known = wandb.Settings.model_fields
    return wandb.Settings(**{name: value for name, value in wanted.items() if name in known})
