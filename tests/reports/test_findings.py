"""The findings in a run's log, as the board shows them."""

from __future__ import annotations

from art_core.log.reader import LoggedRun
from art_core.reports.findings import read_findings
from art_core.testing.sick_runs import sick_run


def test_a_log_has_the_findings_of_all_rules(tmp_path):
    (tmp_path / "history.jsonl").write_bytes(sick_run("truncation", 3).lines())
    examination = read_findings(LoggedRun(tmp_path))
    assert [finding.rule for finding in examination.findings] == ["truncation"]
    assert examination.warnings == {}
