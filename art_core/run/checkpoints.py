"""Which checkpoints to keep (the newest, and the best by a metric that the log holds), and whether
those that the log implies are still there.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import attrs

from art_core.base.errors import BackendError, ConfigError, unknown
from art_core.log.history import read_rows
from art_core.log.timeline import Timeline
from art_core.metrics.taxonomy import Taxonomy

log = logging.getLogger("art_core")


def check_resumed(run: str, trained: int, found: int, *, can_go_back: bool) -> None:
    """Compare the last step that the log says was trained with the step that a backend resumed at.

    Raises BackendError when the backend begins at step 0 and could be asked to do so. Otherwise a
    warning says which steps are lost.
    """
    if found >= trained:
        return
    logged = f"the log of {run} says that step {trained} was trained, but the backend"
    if found:
        log.warning(
            "%s has no checkpoint after step %d: training goes on from there, and repeats the "
            "steps after it",
            logged,
            found,
        )
        return
    problem = f"{logged} has no checkpoint of it"
    if not can_go_back:
        log.warning("%s: training begins again with the base model", problem)
        return
    raise BackendError(
        problem,
        "Put the checkpoints back (was a volume not mounted, or a directory cleaned?). To train "
        "again from the base model, register with step=0, or use another model name.",
    )


@attrs.define
class _Curve:
    line: Timeline
    offset: int = 0


@attrs.define
class Retention:
    """Chooses checkpoints by a metric, over every row of a log; what was read is not read again."""

    history: Path
    taxonomy: Taxonomy
    _curves: dict[str, _Curve] = attrs.field(factory=dict)
    _seen: set[str] = attrs.field(factory=set)

    def steps_to_keep(self, steps: Sequence[int], metric: str) -> set[int]:
        """Return the newest of the steps and the best one by a metric, under any name it has had.

        Values are those of the run's current line (`Timeline`). Until the metric has been logged at
        a step that still has a checkpoint, all steps are kept. Raises ConfigError when other
        metrics were logged, but none of that name.
        """
        wanted = self.taxonomy.resolve(metric)
        values = self._values(wanted)
        if self._seen and not values and metric != "val/reward":
            raise ConfigError(unknown("metric", metric, self._seen, known_as="logged"))
        scored = {step: values[step] for step in steps if step in values}
        if not scored:
            return set(steps)
        lower = self.taxonomy.direction(wanted) == "lower"
        best = min(scored, key=lambda s: (scored[s] if lower else -scored[s], -s))
        return {best, max(steps)}

    def _values(self, wanted: str) -> dict[int, float]:
        # ART's averages over trajectories had another name, which bare names have as well.
        average = self.taxonomy.former_average(wanted)
        curve = self._curves.get(wanted)
        if curve is None:
            line = Timeline(self.taxonomy, lambda key: key in (wanted, average))
            curve = self._curves[wanted] = _Curve(line)
        for row, offset in read_rows(self.history, curve.offset):
            curve.offset = offset
            curve.line.add(row)
        self._seen |= curve.line.logged
        return curve.line.curve(average) | curve.line.curve(wanted)
