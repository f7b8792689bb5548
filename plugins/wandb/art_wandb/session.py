"""Opens the W&B run: the one place that knows wandb's settings."""

from __future__ import annotations

import json
import logging
import os
from typing import Any

import wandb

from art_core import RunInfo
from art_wandb.identity import run_id
from art_wandb.options import Options

log = logging.getLogger("art_core")

FLUSH_S = 1.0

_open: dict[str, wandb.Run] = {}
"""The runs of this process by id: wandb's service opens an id once at a time."""


def open_run(run: RunInfo, options: Options) -> wandb.Run:
    """Return the W&B run of a run, new or resumed. Raises what wandb raises: CommError or a timeout
    without a network.
    """
    # wandb's usage analytics wait for the network at exit, past every timeout.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    mode: Any = options.chosen_mode()
    own_id = run_id(run)
    if own_id in _open:
        _finish_quietly(_open[own_id])
    _open[own_id] = opened = wandb.init(
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
        settings=_settings(options, quiet=mode == "offline"),
    )
    return opened


def finish(run: wandb.Run, exit_code: int) -> None:
    """Finish a W&B run; waits for uploads no longer than `finish_timeout_s`."""
    run.finish(exit_code=exit_code)
    _open.pop(run.id, None)


def config_of(run: RunInfo) -> dict[str, Any]:
    """Return what W&B keeps as the run's config: the user's, and what the run is."""
    about = {"project": run.project, "name": run.name, "base_model": run.base_model}
    stored: dict[str, Any] = json.loads(json.dumps({**run.config, "art": about}, default=str))
    return stored


def abandon(run: wandb.Run | None, error: BaseException) -> None:
    """Let go of a W&B run after an error, so that it can be opened again.

    When the error says that wandb's service died, the next run starts another one. A living service
    is left alone: the process may have W&B runs of its own.
    """
    if run is not None:
        _finish_quietly(run)
    if isinstance(error, ConnectionError) or type(error).__name__ == "MailboxClosedError":
        try:
            wandb.teardown()
        except Exception as gone:
            log.debug("wandb's service was gone: %s", gone)


def _finish_quietly(run: wandb.Run) -> None:
    try:
        finish(run, exit_code=1)
    except Exception as error:
        log.debug("a W&B run could not be finished: %s", error)
    _open.pop(run.id, None)


def _settings(options: Options, *, quiet: bool) -> wandb.Settings:
    code = options.saves_code()
    wanted = {
        "console": "off",
        "save_code": code,
        "disable_code": not code,
        "disable_git": not code,
        "init_timeout": options.init_timeout_s,
        "login_timeout": options.init_timeout_s,
        "finish_timeout": options.finish_timeout_s,
        "quiet": True,
        "silent": quiet,
        # Not public, and left out where a later wandb lacks it: 15 s by default.
        "x_transaction_log_flush_interval": FLUSH_S,
    }
    known = wandb.Settings.model_fields
    return wandb.Settings(**{name: value for name, value in wanted.items() if name in known})
