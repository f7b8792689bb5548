"""What the rules of all plugins find in the log of a run."""

from __future__ import annotations

from art_core.checks.curves import RunCurves
from art_core.checks.examine import Examination, examine
from art_core.hooks.host import installed_plugins
from art_core.log.reader import LoggedRun


def read_findings(run: LoggedRun) -> Examination:
    """Return the findings in a run's log, by onset, and the rules that raised or were slow."""
    curves = RunCurves.of_rows(run.rows(), run.taxonomy)
    return examine(curves, installed_plugins().checks().values())
