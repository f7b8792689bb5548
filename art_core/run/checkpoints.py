"""Checkpoints: strategies of which to keep, the best by a metric, and those that are lost."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import attrs

from art_core.base.errors import BackendError, ConfigError, unknown
from art_core.log.rows import read_rows
from art_core.log.timeline import Timeline
from art_core.metrics.taxonomy import Taxonomy

log = logging.getLogger("art_core")

_NORMAL_95 = 1.96
"""Standard errors on each side of a 95 % interval."""


def check_resumed(run: str, trained: int, found: int, *, can_go_back: bool) -> None:
    """Compare the last trained step in the log with the step at which a backend resumed.

    Raises BackendError when the backend begins at step 0 although earlier steps can be requested
    (`can_go_back`). Otherwise a warning names the lost steps.
    """
    if found >= trained:
        return
    logged = f"the log of {run} has trained step {trained}, but the backend"
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
    """Chooses checkpoints by a metric over all rows of a log, each of which is read once."""

    history: Path
    taxonomy: Taxonomy
    _curves: dict[str, _Curve] = attrs.field(factory=dict)
    _logged: set[str] = attrs.field(factory=set)

    def steps_to_keep(self, steps: Sequence[int], metric: str) -> set[int]:
        """Return the newest step and the best one by a metric, also by its former names.

        Values are those of the run's current line (`Timeline`). All steps are kept until the metric
        has been logged at a step that has a checkpoint. Raises ConfigError when other metrics were
        logged and this one was not.
        """
        if not self.values(metric) and self._logged and metric != "val/reward":
            raise ConfigError(unknown("metric", metric, self._logged, known_as="logged"))
        ranked = self.ranked(steps, metric)
        return {ranked[0], max(steps)} if ranked else set(steps)

    def ranked(self, steps: Sequence[int], metric: str) -> list[int]:
        """Return the steps that have a value of a metric, the best first, the latest of equals."""
        values = self.values(metric)
        lower = self.taxonomy.direction(self.taxonomy.resolve(metric)) == "lower"
        sign = 1.0 if lower else -1.0
        scored = [step for step in steps if step in values]
        return sorted(scored, key=lambda step: (sign * values[step], -step))

    def values(self, metric: str) -> dict[int, float]:
        """Return a metric's values on the run's current line, also those of its former names."""
        return self._values(self.taxonomy.resolve(metric))

    def best_step(self, steps: Sequence[int], metric: str, at_least: float | None = None) -> int:
        """Return the best of the steps by a metric, the latest of equals.

        A value counts by the worse end of its 95 % interval if its standard error was logged, as
        `<metric>_std_err`; else as it is. Raises ConfigError when no step has the metric, or none
        is at least `at_least` (at most, for a metric of which lower is better).
        """
        wanted = self.taxonomy.resolve(metric)
        values, errors = self._values(wanted), self._values(f"{wanted}_std_err")
        lower = self.taxonomy.direction(wanted) == "lower"
        sign = -1.0 if lower else 1.0
        bounds = {
            step: sign * values[step] - _NORMAL_95 * errors.get(step, 0.0)
            for step in steps
            if step in values
        }
        if not bounds:
            raise ConfigError(f"no checkpoint has a value of {metric!r}", "Evaluate one first.")
        best = max(bounds, key=lambda step: (bounds[step], step))
        if at_least is not None and bounds[best] < sign * at_least:
            raise ConfigError(
                f"no checkpoint is surely {'at most' if lower else 'at least'} {at_least:g} by "
                f"{metric!r}: the best is step {best}, {sign * bounds[best]:.4g} at the worse end "
                "of its interval"
            )
        return best

    def _values(self, wanted: str) -> dict[int, float]:
        # ART's averages over trajectories had the form of bare names.
        average = self.taxonomy.former_average(wanted)
        curve = self._curves.get(wanted)
        if curve is None:
            line = Timeline(self.taxonomy, lambda key: key in (wanted, average))
            curve = self._curves[wanted] = _Curve(line)
        for row, offset in read_rows(self.history, curve.offset):
            curve.offset = offset
            curve.line.add(row)
        self._logged |= curve.line.logged
        return curve.line.curve(average) | curve.line.curve(wanted)


@attrs.frozen
class StoredSteps:
    """The steps of a run that have a checkpoint, oldest first, and the run's metrics; given to a
    strategy, which returns the steps to keep.
    """

    steps: tuple[int, ...]
    _curves: Retention = attrs.field(repr=False)

    def values(self, metric: str) -> dict[int, float]:
        """Return a metric's values at these steps, where it was logged."""
        found = self._curves.values(metric)
        return {step: found[step] for step in self.steps if step in found}

    def best(self, metric: str, count: int = 1) -> list[int]:
        """Return so many of the steps, the best by a metric first, the latest of equals."""
        return self._curves.ranked(self.steps, metric)[:count]


KeepCheckpoints = Callable[[StoredSteps], Collection[int]]
"""A strategy: a function of what is stored that returns the steps to keep. The newest checkpoint,
and those in use, are kept in any case.
"""


def keep_all() -> KeepCheckpoints:
    """Keep every checkpoint."""
    return lambda stored: stored.steps


def keep_every(steps: int) -> KeepCheckpoints:
    """Keep the checkpoints of each `steps`-th step, and the newest."""
    _check("steps", steps, 1)
    return lambda stored: [step for step in stored.steps if step % steps == 0]


def keep_recent_and_top(
    recent: int = 3, top: int = 2, metric: str = "val/reward"
) -> KeepCheckpoints:
    """Keep the most recent checkpoints, and the top ones by a metric, in the metric's direction."""
    _check("recent", recent, 1)
    _check("top", top, 0)
    return lambda stored: {*stored.steps[-recent:], *stored.best(metric, top)}


def _check(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} must be a whole number from {least} on, got {value!r:.80}")
