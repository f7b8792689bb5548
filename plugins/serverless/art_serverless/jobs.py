"""Training jobs at the service: their events, and the metrics and costs that they report."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import attrs

from art_core import BackendError, MetricError
from art_core.base.progress import progress_bar
from art_serverless.api import Api
from art_serverless.protocol import Event

log = logging.getLogger("art_serverless")

MIN_PAUSE_S, MAX_PAUSE_S = 0.2, 2.0

PLAIN_NAMES = {
    "loss": "loss/train",
    "entropy": "loss/entropy",
    "grad_norm": "loss/grad_norm",
    "kl_div": "loss/kl_div",
    "learning_rate": "loss/learning_rate",
}
"""Metrics of services that use bare names, and their canonical keys."""

STEPS = "data/step_num_gradient_steps"


class JobFailedError(BackendError):
    """The service could not run the step; the message has its reason."""


@attrs.frozen(kw_only=True)
class JobResult:
    """The result of a job: the metrics of each gradient step, its seconds, and its last event."""

    gradient_steps: tuple[Mapping[str, float], ...]
    seconds: float
    ended: Mapping[str, Any]


async def follow(
    api: Api, job_id: str, *, stall_timeout_s: float, progress: bool, label: str
) -> JobResult:
    """Wait for a job to end, with a progress bar over its gradient steps.

    Raises JobFailedError with the service's reason, BackendError if there are no new events for
    `stall_timeout_s`.
    """
    steps: list[Mapping[str, float]] = []
    started = time.monotonic()
    with progress_bar(desc=label, unit="step", leave=False, disable=not progress) as bar:
        async for event in _events(api, job_id, stall_timeout_s):
            if event.type == "training_started":
                started, bar.total = time.monotonic(), event.data.get("num_sequences")
                bar.refresh()
            elif event.type == "gradient_step":
                steps.append(_floats(event.data))
                bar.update()
            elif event.type == "training_failed":
                raise JobFailedError(f"training job {job_id} failed: {_reason(event)}")
            elif event.type == "training_ended":
                seconds = time.monotonic() - started
                return JobResult(gradient_steps=tuple(steps), seconds=seconds, ended=event.data)
    raise AssertionError("the events include one that ends the job")


async def _events(api: Api, job_id: str, stall_timeout_s: float) -> AsyncIterator[Event]:
    """Yield events as they come. A service that answers at once is asked again after a pause, which
    grows; one that waits for events is asked again at once.
    """
    cursor: str | None = None
    last_news, pause = time.monotonic(), MIN_PAUSE_S
    while True:
        sent = time.monotonic()
        found = await api.events(job_id, cursor)
        for event in found:
            cursor = event.id
            yield event
        now = time.monotonic()
        if found:
            last_news, pause = now, MIN_PAUSE_S
        elif now - last_news > stall_timeout_s:
            raise BackendError(
                f"training job {job_id} had no new events for {now - last_news:.0f} s",
                "It may still run. The client finds it again when the model registers.",
            )
        elif now - sent < MIN_PAUSE_S:
            await asyncio.sleep(pause)
            pause = min(2 * pause, MAX_PAUSE_S)


def combined(steps: Iterable[Mapping[str, float]], summed: Iterable[str]) -> dict[str, float]:
    """Return one value per key: the sum over gradient steps for `summed`, else the mean."""
    values: dict[str, list[float]] = {}
    for step in steps:
        for key, value in step.items():
            values.setdefault(key, []).append(value)
    sums = set(summed)
    return {
        key: math.fsum(found) / (1 if key in sums else len(found)) for key, found in values.items()
    }


def _floats(data: Mapping[str, Any]) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in data.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def _reason(event: Event) -> str:
    return str(event.data.get("error_message") or "no reason was given")


def metrics_of(job: JobResult, taxonomy: Any) -> dict[str, float]:
    """Return a step's metrics under canonical keys, without those that the taxonomy rejects."""
    values = combined(job.gradient_steps, _summed(job, taxonomy))
    found: dict[str, float] = {STEPS: float(len(job.gradient_steps))}
    for name, value in values.items():
        if name.startswith("costs/"):
            continue
        try:
            key = taxonomy.resolve(taxonomy.place(PLAIN_NAMES.get(name, name), "train"))
        except MetricError as error:
            log.warning("the service's metric %r is left out: %s", name, error)
            continue
        found[key] = value
    found.setdefault("time/step_trainer_s", job.seconds)
    return found


def costs_of(job: JobResult) -> dict[str, float]:
    """Return the costs of the step that the service reports, by cost leaf, in US dollars."""
    leaves = cost_leaves(key for step in job.gradient_steps for key in step)
    usd = combined(job.gradient_steps, leaves)
    return {key.removeprefix("costs/"): usd[key] for key in leaves if usd[key] > 0}


def cost_leaves(keys: Iterable[str]) -> list[str]:
    """Return the cost keys that are neither sums of other keys nor sums over the run."""
    costs = {key for key in keys if key.startswith("costs/")}
    return [key for key in sorted(costs) if not _is_sum(key, costs)]


def _is_sum(key: str, keys: set[str]) -> bool:
    return (
        key == "costs/all" or "/cum/" in key or any(other.startswith(f"{key}/") for other in keys)
    )


def _summed(job: JobResult, taxonomy: Any) -> set[str]:
    return {
        key
        for step in job.gradient_steps
        for key in step
        if "/step_" in key and taxonomy.spec(key).combine == "sum"
    }
