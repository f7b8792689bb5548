"""Opens the W&B run: the one place that knows wandb's settings."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import requests
import wandb

from art_core import RunInfo, SinkError
from art_wandb.identity import run_id
from art_wandb.options import Options

log = logging.getLogger("art_core")

FLUSH_S = 1.0

_open: dict[str, wandb.Run] = {}
"""The runs of this process by id: wandb's service opens an id once at a time."""


def open_run(run: RunInfo, options: Options) -> wandb.Run:
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


def _init(run: RunInfo, options: Options, own_id: str, mode: Any) -> wandb.Run:
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
    """Keep `sys.exit` and `sys.excepthook`, which wandb replaces to learn how a program ends: the
    sink's `close` is given that, and Ctrl-C is to print one line.
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
        _teardown()


def _reach(mode: str | None, seconds: float) -> None:
    """Ask W&B for any answer, before `wandb.init` takes the run's id and waits with it."""
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
    """Stop wandb's service, unless others use it: it would say that the id of a run that could not
    be opened is in use, for as long as it lives.
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


def _settings(options: Options) -> wandb.Settings:
    code = options.saves_code()
    wanted = {
        "console": "off",
        "save_code": code,
        "disable_code": not code,
        "disable_git": not code,
        "init_timeout": options.init_timeout_s,
        "login_timeout": options.init_timeout_s,
        "finish_timeout": options.finish_timeout_s,
        # wandb tells parts of its story on standard output, which is the user's.
        "silent": True,
        # Not public, and left out where a later wandb lacks it: 15 s by default.
        "x_transaction_log_flush_interval": FLUSH_S,
    }
    known = wandb.Settings.model_fields
    return wandb.Settings(**{name: value for name, value in wanted.items() if name in known})
