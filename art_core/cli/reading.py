"""A run's log as the commands read it: canonical names, one value per step, the newest totals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from art_core.log.rundir import FoundRun
from art_core.log.timeline import Timeline
from art_core.metrics.taxonomy import Taxonomy


def read_run(run: FoundRun, taxonomy: Taxonomy) -> Timeline:
    """Read a run's whole log."""
    return Timeline.of_log(run.history, taxonomy)


def problem_lines(problems: Mapping[str, str]) -> Iterator[str]:
    """Yield one line per run that can't be read, or only in part: {name: reason}."""
    for name, reason in problems.items():
        yield f"{name}: {reason}"
