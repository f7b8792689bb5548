"""The doctor during a run: it examines the curves as rows come, and returns each finding once."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import attrs

from art_core.base.errors import ConfigError
from art_core.base.files import read_json, replace_json
from art_core.checks.curves import CurveLog
from art_core.checks.examine import examine
from art_core.checks.finding import CheckSpec, Finding
from art_core.log.history import MetricsRow, last_row
from art_core.log.rows import read_rows
from art_core.log.rundir import history_file
from art_core.log.timeline import Timeline
from art_core.sinks.protocol import RunInfo

log = logging.getLogger("art_core")

EXAMINED = 200
"""A run of twice as many steps is examined each step; a longer one so often in a doubling."""

PAUSE = 10
"""Steps for which a problem may be away and still be the same one."""


def steps_between(steps: int) -> int:
    """Return the steps between two examinations of a run that is `steps` long.

    One takes time in proportion to the steps, so that all together do too.
    """
    return 1 << max(0, (steps // EXAMINED).bit_length() - 1)


@attrs.define(eq=False)
class Watch:
    """Examines a run of which rows come, by rules that neither raise nor take long.

    `reported` has for each rule the first and the newest step of the problem that was reported
    last, in the rows up to the `seq` of the newest that was examined. Both are kept in the run's
    directory, by the name of the sink, so that a problem is reported once: also if rows come again,
    and by a later process. A problem that pauses for 10 steps or fewer is the same one.
    """

    run: RunInfo
    rules: Sequence[CheckSpec]
    reported: dict[str, tuple[int, int]] = attrs.field(init=False)
    unsent: list[Finding] = attrs.field(init=False)
    seq: int = attrs.field(init=False)
    _log: CurveLog | None = None
    _newest_seq: int = 0
    _examined: int = 0

    def __attrs_post_init__(self) -> None:
        try:
            stored = read_json(self._file)
            self.reported = {
                str(rule): (int(first), int(last))
                for rule, (first, last) in stored["reported"].items()
            }
            self.unsent = [Finding(**finding) for finding in stored["unsent"]]
            self.seq = int(stored["seq"])
        except (ConfigError, OSError, ValueError, KeyError, TypeError, AttributeError):
            self.reported, self.unsent, self.seq = {}, [], 0
        history = history_file(self.run.run_dir)
        last = last_row(history) if self.seq and history.exists() else None
        if last is not None and last.seq < self.seq:  # the log was begun again
            self.reported, self.seq = {}, 0

    @property
    def _file(self) -> Path:
        return self.run.run_dir / "sinks" / f"{self.run.sink or 'doctor'}.findings.json"

    def add(self, rows: Iterable[MetricsRow]) -> None:
        """Add rows; those that came before are passed over."""
        for row in rows:
            if self._log is None:
                self._log = self._before(row)
            if not row.seq or row.seq > self._newest_seq:
                self._log.add(row)
                self._newest_seq = row.seq

    def _before(self, row: MetricsRow) -> CurveLog:
        before, history = CurveLog(Timeline(self.run.taxonomy)), history_file(self.run.run_dir)
        if row.seq and history.exists():
            for earlier, _ in read_rows(history):
                if earlier.seq >= row.seq:
                    break
                before.add(earlier)
        return before

    @property
    def is_due(self) -> bool:
        """Whether enough steps were added since the last examination, and none was examined."""
        if self._newest_seq and self._newest_seq <= self.seq:
            return False
        steps = len(self._log.line.trained) if self._log else 0
        return abs(steps - self._examined) >= steps_between(steps)

    def new_findings(self) -> list[Finding]:
        """Examine the curves; return findings that were not reported, also by an earlier process.

        A rule that raised or was slow is left out from then on, with one warning.
        """
        if self._log is None or self.seq > self._newest_seq:
            return []
        curves = self._log.curves()
        self._examined, self.seq = len(curves.steps), self._newest_seq
        examination = examine(curves, self.rules)
        for warning in examination.warnings.values():
            log.warning("%s; it does not watch this run any more", warning)
        self.rules = [r for r in self.rules if r.name not in examination.warnings]
        newest = curves.steps[-1] if curves.steps else 0
        # a problem whose steps were replaced by others begins anew
        known = {
            rule: (first, min(last, newest))
            for rule, (first, last) in self.reported.items()
            if first <= newest
        }
        new: list[Finding] = []
        for finding in examination.findings:
            last = newest if finding.until is None else finding.until
            first, before = known.get(finding.rule, (finding.onset, -PAUSE - 1))
            if finding.onset > before + PAUSE:
                new.append(finding)
                first = finding.onset
            known[finding.rule] = first, max(last, before)
        self.reported = known
        return new

    def keep(self) -> None:
        """Store what was reported, and what is still to be sent."""
        self._file.parent.mkdir(exist_ok=True)
        unsent = [attrs.asdict(finding) for finding in self.unsent]
        stored = {"reported": self.reported, "unsent": unsent, "seq": self.seq}
        replace_json(self._file, stored, sync=False)


def id_of(run: RunInfo, finding: Finding) -> str:
    """Return the id of a finding, by which a receiver can drop repeats."""
    return f"{run.project}/{run.name}/{finding.rule}/{finding.onset}"


def as_json(run: RunInfo, finding: Finding) -> Mapping[str, object]:
    """Return a finding of a run as a webhook gets it."""
    text = f"{run.project}/{run.name}: {finding.heading}. {finding.problem}. {finding.change}"
    return {
        "id": id_of(run, finding),
        "run": f"{run.project}/{run.name}",
        **attrs.asdict(finding),
        "text": text,
    }
