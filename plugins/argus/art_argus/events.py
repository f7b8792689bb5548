"""Rows become events: pure functions from a run's rows to the envelopes of Argus's schema 1.1.

An event's id is made from its content. An event that is delivered twice has the same id twice, and
Argus keeps one of them.
"""

from __future__ import annotations

import getpass
import hashlib
import re
import socket
import subprocess
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import attrs

from art_argus.summary import Summary, finite, numbers
from art_core import MetricsRow, RunInfo

_MAX_BATCH, _MAX_JOB = 128, 256
_OUTSIDE = re.compile(r"[^\w.-]+")


@attrs.frozen(kw_only=True)
class Job:
    """A run on Argus: a batch with one job. Argus ranks one job for each model and dataset."""

    batch_id: str
    job_id: str
    model: str
    dataset: str
    source: dict[str, str]

    @classmethod
    def of(cls, run: RunInfo, task: str | None = None) -> Job:
        """Return the job of a run; its ids are the same in every attempt."""
        # Without the mark, project "a-b" with model "c" and "a" with "b-c" would be one batch.
        mark = f"-{_short_hash(run.project)}" if "-" in run.project else ""
        return cls(
            batch_id=safe_id(f"{run.project}-{run.name}{mark}", _MAX_BATCH),
            job_id=safe_id(f"{run.project}.{run.name}", _MAX_JOB),
            model=run.name,
            dataset=str(task or run.config.get("task") or run.project),
            source={"project": safe_id(run.project, _MAX_BATCH), **origin()},
        )


def safe_id(text: str, max_length: int) -> str:
    """Return an id that fits into a URL's path: letters, digits, `_`, `.` and `-`.

    An id that was changed ends in a short hash of the text, so different texts have different ids.
    """
    safe = _OUTSIDE.sub("-", text)
    if safe == text and len(text) <= max_length:
        return text
    return f"{safe[: max_length - 9]}-{_short_hash(text)}"


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def origin() -> dict[str, str]:
    """Return the origin of the run: host, user and the commit of the working directory."""
    found = {"host": socket.gethostname(), "user": _user(), "commit": _commit()}
    return {name: value for name, value in found.items() if value}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return ""


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=2, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


Event = dict[str, Any]

SCHEMA_VERSION = "1.1"
EXPERIMENT_TYPE = "agent-rl"
_SPACE = uuid.UUID("6f2c7c1e-3f1f-5a0e-9a53-61f0a3f1d2b7")
_RENAMED = {"loss/train": "train_loss", "loss/learning_rate": "lr"}


def started(job: Job, run: RunInfo, at: datetime) -> list[Event]:
    """Return the events that open a run, a batch of one job; a known batch is resumed."""
    key = f"{run.attempt}/{_stamp(at)}"
    batch = {"experiment_type": EXPERIMENT_TYPE, "n_total_jobs": 1}
    about = {
        "model": job.model,
        "dataset": job.dataset,
        "base_model": run.base_model,
        "attempt": run.attempt,
    }
    return [
        _event(job, "batch_start", at, batch, key),
        _event(job, "job_start", at, {k: v for k, v in about.items() if v is not None}, key),
    ]


def point(
    job: Job, row: MetricsRow, is_count: Callable[[str], bool], *, is_epoch: bool = True
) -> Event:
    """Return a train row as a point of the job's curves, whose epoch is the step. Other rows, and
    rows that repeat an epoch, become log lines with their values: Argus counts every point as a
    trained epoch.
    """
    data: Event = dict(numbers(row.metrics, is_count))
    data |= {"split": row.split, "attempt": row.attempt, "seq": row.seq}
    key = f"{row.seq}/{_stamp(row.recorded_at)}"
    if row.split != "train" or not is_epoch:
        return _event(job, "log_line", row.recorded_at, _line(row) | data, key)
    named = {name: data.pop(key) for key, name in _RENAMED.items() if key in data}
    if batch_time_ms := _batch_time_ms(finite(row.metrics)):
        named["batch_time_ms"] = batch_time_ms
    return _event(job, "job_epoch", row.recorded_at, {"epoch": row.step, **named, **data}, key)


def _line(row: MetricsRow) -> Event:
    reward = row.metrics.get(f"{row.split}/reward")
    shown = f"{row.split} at step {row.step}" + ("" if reward is None else f": reward {reward:.6g}")
    about = {"level": "info", "ts_unix": row.recorded_at.timestamp(), "step": row.step}
    return {"line": shown, **about}


def _batch_time_ms(metrics: Mapping[str, float]) -> float:
    batches = metrics.get("data/step_num_gradient_steps", 0.0)
    return 1e3 * metrics.get("time/step_trainer_s", 0.0) / batches if batches > 0 else 0.0


def ended(job: Job, run: RunInfo, summary: Summary, now: datetime) -> list[Event]:
    """Return the events that close a run that has ended, with its last metrics; else nothing."""
    if run.status not in ("finished", "failed", "interrupted", "killed", "out of budget"):
        return []
    at = summary.last_at or now
    key = f"{summary.seq}/{_stamp(at)}/{run.status}"
    elapsed = {"elapsed_s": summary.last.get("time/wall_clock_sec", 0.0)}
    total = {"total_elapsed_s": elapsed["elapsed_s"]}
    metrics = {"metrics": summary.metrics(run.config)}
    if run.status == "finished":
        done = {"status": "DONE", "train_epochs": summary.train_steps}
        return [
            _event(job, "job_done", at, done | metrics | elapsed, key),
            _event(job, "batch_done", at, {"n_done": 1, "n_failed": 0} | total, key),
        ]
    status = "the run failed" if run.status == "failed" else f"the run was {run.status}"
    reason = run.reason or status
    why = {"reason": reason, "error": reason}
    return [
        _event(job, "job_failed", at, {"status": "FAILED"} | why | metrics | elapsed, key),
        _event(job, "batch_failed", at, why | {"n_done": 0, "n_failed": 1} | total, key),
    ]


def heartbeat(job: Job, at: datetime) -> Event:
    """Return a heartbeat."""
    data = {"line": "heartbeat", "level": "debug", "ts_unix": at.timestamp()}
    return _event(job, "log_line", at, data, _stamp(at))


def _event(job: Job, kind: str, at: datetime, data: Event, key: str) -> Event:
    return {
        "event_id": str(uuid.uuid5(_SPACE, f"{job.batch_id}/{job.job_id}/{kind}/{key}")),
        "schema_version": SCHEMA_VERSION,
        "event_type": kind,
        "timestamp": _stamp(at),
        "batch_id": job.batch_id,
        "job_id": None if kind.startswith("batch_") else job.job_id,
        "source": job.source,
        "data": data,
    }


def _stamp(at: datetime) -> str:
    # Argus sorts these as text: always six decimals.
    return f"{at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='microseconds')}Z"
