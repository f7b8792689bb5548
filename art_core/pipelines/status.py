"""The state of a pipeline while it runs, as a bar or as lines."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from art_core.base.progress import interval_s, progress_bar
from art_core.log.history import MetricsRow
from art_core.pipelines.evaluations import Evaluations
from art_core.pipelines.workers import Workers
from art_core.queue.queue import AttemptQueue

SHOWN_EVERY_S = 0.5


def figures(row: MetricsRow | None, *, ready: int, running: int, evaluating: int) -> dict[str, str]:
    """Return what a status shows: what waits and runs now, and the figures of the last step."""
    shown = {"ready": f"{ready}", "running": f"{running}"}
    if evaluating:
        shown["evaluating"] = f"{evaluating}"
    metrics: Mapping[str, float] = {} if row is None else row.metrics
    wall = metrics.get("time/step_wall_s", 0.0)
    if "offpolicy/steps_mean" in metrics:
        shown["age"] = f"{metrics['offpolicy/steps_mean']:.1f}"
    if "pipeline/cum/num_groups_stale" in metrics:
        shown["stale"] = f"{metrics['pipeline/cum/num_groups_stale']:.0f}"
    for part in ("trainer", "actor"):
        idle = metrics.get(f"throughput/step_{part}_idle_s")
        if idle is not None and wall > 0:
            shown[f"{part} idle"] = f"{min(1.0, idle / wall):.0%}"
    if "data/step_actor_tokens" in metrics and wall > 0:
        shown["tok/s"] = f"{metrics['data/step_actor_tokens'] / wall:.0f}"
    if "costs/cum/all" in metrics:
        shown["$"] = f"{metrics['costs/cum/all']:.4f}"
    return shown


async def show_status(
    queue: AttemptQueue, workers: Workers, evaluations: Evaluations, steps: int | None
) -> None:
    """Show the state until this is cancelled: a bar in a terminal, lines at intervals in a log."""
    bar = progress_bar(desc="pipeline", total=steps, initial=workers.step, unit="step")
    try:
        while True:
            counts = await queue.counts()
            now = figures(
                workers.model.run.history.last,
                ready=counts.ready,
                running=workers.running.level,
                evaluating=evaluations.running.level,
            )
            bar.n = workers.step
            bar.set_postfix(now)
            await asyncio.sleep(max(SHOWN_EVERY_S, interval_s()))
    finally:
        bar.close()
