"""The doctor on logs of examples, as they trained: without clocks, ids and sums over the run."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from art_core.checks.curves import RunCurves
from art_core.checks.examine import examine
from art_core.checks.rules import RULES
from art_core.log.rows import read_rows
from art_core.metrics.taxonomy import builtin_taxonomy

LOGS = sorted((Path(__file__).parent / "example_runs").glob("*.jsonl"))


def found(rows):
    examination = examine(RunCurves.of_rows(rows, builtin_taxonomy()), RULES)
    assert examination.warnings == {}
    return [finding.rule for finding in examination.findings]


@pytest.mark.parametrize("log", LOGS, ids=lambda log: log.stem)
def test_the_doctor_is_silent_on_an_example_and_not_on_its_log_with_a_problem(log):
    rows = [row for row, _ in read_rows(log)]
    assert len({row.step for row in rows}) >= 12
    assert found(rows) == []
    failing = {"reward/exception_rate": 0.5}
    ill = [attrs.evolve(row, metrics=row.metrics | failing) for row in rows]
    assert found(ill) == ["failing-rollouts"]


def test_there_are_logs():
    assert len(LOGS) == 5  # of examples with twelve steps or more
