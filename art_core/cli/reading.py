"""A run's log as the commands read it: canonical names, one value per step, the newest totals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs

from art_core.metrics.history import last_row, read_rows
from art_core.metrics.row import MetricsRow
from art_core.metrics.taxonomy import Taxonomy
from art_core.reports.steps import StepValues, is_training_row
from art_core.rundir import FoundRun

_ALL_COSTS = "costs/cum/all"


@attrs.define
class Reading:
    """A whole log: `steps` holds the value of each key at each step.

    `totals` holds the newest value of each cumulative key: rows that ART wrote leave some out.
    `spent` is what each step cost in US dollars, over all its rows, splits and attempts; `trained`
    are the steps that were trained.
    """

    steps: StepValues
    rows: int = 0
    last: MetricsRow | None = None
    totals: dict[str, float] = attrs.field(factory=dict)
    spent: dict[int, float] = attrs.field(factory=dict)
    trained: set[int] = attrs.field(factory=set)

    @property
    def curves(self) -> dict[str, dict[int, float]]:
        """Return {step: value} of each key that was logged."""
        return self.steps.curves

    def curve(self, key: str) -> dict[int, float]:
        """Return {step: value} of a key, by step; empty when it was never logged."""
        return dict(sorted(self.curves.get(key, {}).items()))


def read_run(run: FoundRun, taxonomy: Taxonomy) -> Reading:
    """Read a run's whole log."""
    reading = Reading(StepValues(taxonomy))
    for row, _ in read_rows(run.history):
        reading.rows += 1
        reading.last = row
        before = reading.totals.get(_ALL_COSTS, 0.0)
        metrics = canonical(row, taxonomy)
        if is_training_row(row.step, row.split, metrics):
            reading.trained.add(row.step)
        reading.steps.add(row, metrics)
        reading.totals |= {key: value for key, value in metrics.items() if "/cum/" in key}
        if _ALL_COSTS in reading.totals:
            spent = reading.totals[_ALL_COSTS] - before
            reading.spent[row.step] = reading.spent.get(row.step, 0.0) + spent
    return reading


def canonical(row: MetricsRow, taxonomy: Taxonomy) -> dict[str, float]:
    """Return a row's metrics under the names of today's catalogue."""
    return taxonomy.renamed(row.metrics, foreign=not row.seq)


def newest_row(run: FoundRun) -> MetricsRow | None:
    """Return the last row of a run, None for an empty log."""
    return last_row(run.history)


def problem_lines(problems: Mapping[str, str]) -> Iterator[str]:
    """Yield one line per run that can't be read, or only in part: {name: reason}."""
    for name, reason in problems.items():
        yield f"{name}: {reason}"
