"""Which checkpoints to keep: the newest, and the best by a metric that the log holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from art_core.errors import ConfigError, unknown
from art_core.metrics.history import read_rows
from art_core.metrics.taxonomy import Taxonomy


def steps_to_keep(history: Path, steps: Sequence[int], metric: str, taxonomy: Taxonomy) -> set[int]:
    """Return the newest of the steps and the best one by a metric, over every row of the log.

    A later attempt's row of a step replaces an earlier one's. Until the metric has been logged at a
    step that still has a checkpoint, all steps are kept. Raises ConfigError when other metrics were
    logged, but none of that name or of a former name of it.
    """
    wanted = taxonomy.resolve(metric)
    lower = taxonomy.direction(wanted) == "lower"
    best: dict[int, float] = {}
    seen: set[str] = set()
    for row, _ in read_rows(history):
        seen.update(row.metrics)
        for key, value in row.metrics.items():
            if key == wanted or taxonomy.resolve(key) == wanted:
                best[row.step] = value
    if seen and not best and metric != "val/reward":
        raise ConfigError(unknown("metric", metric, seen, known_as="logged"))
    scored = {step: best[step] for step in steps if step in best}
    if not scored:
        return set(steps)
    chosen = min(scored, key=lambda s: (scored[s] if lower else -scored[s], -s))
    return {chosen, max(steps)}
