"""Canonical metrics and costs of a job's events."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from art_core import MetricError
from art_serverless.jobs import JobResult, combined

log = logging.getLogger("art_serverless")

PLAIN_NAMES = {
    "loss": "loss/train",
    "entropy": "loss/entropy",
    "grad_norm": "loss/grad_norm",
    "kl_div": "loss/kl_div",
    "learning_rate": "loss/learning_rate",
}
"""Metrics of services that use bare names, and their canonical keys."""

STEPS = "data/step_num_gradient_steps"


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
