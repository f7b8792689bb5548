"""From what a job told to canonical metrics and costs."""

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
"""What services that say bare names mean by them."""

STEPS = "data/step_num_gradient_steps"


def metrics_of(job: JobResult, taxonomy: Any) -> dict[str, float]:
    """Return a step's metrics under canonical keys; keys that the taxonomy refuses are left out."""
    told = combined(job.gradient_steps, _summed(job, taxonomy))
    found: dict[str, float] = {STEPS: float(len(job.gradient_steps))}
    for name, value in told.items():
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
    """Return what the service says that the step cost, by cost leaf, in US dollars."""
    leaves = cost_leaves(key for step in job.gradient_steps for key in step)
    told = combined(job.gradient_steps, leaves)
    return {key.removeprefix("costs/"): told[key] for key in leaves if told[key] > 0}


def cost_leaves(keys: Iterable[str]) -> list[str]:
    """Return the costs among a step's keys that are no sum of others, nor one over the run."""
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
