"""For sinks: what each row changes on the current line of a run."""

from __future__ import annotations

import attrs

from art_core.log.timeline import Change, Timeline, adds_up
from art_core.metrics.row import MetricsRow
from art_core.sinks.protocol import RunInfo

_REMEMBERED = 1_000


@attrs.define(eq=False)
class CurrentLine:
    """Follows the rows that a sink writes. A row that comes again gets the same answer.

    It begins with the rows of the run's log before the first one that it is given, and keeps only
    the metrics that add up.
    """

    run: RunInfo
    _timeline: Timeline | None = None
    _newest_seq: int = 0
    _changes: dict[int, Change] = attrs.field(factory=dict)

    @property
    def trained(self) -> set[int]:
        """The trained steps of the line, as far as rows were given."""
        return self._timeline.trained if self._timeline else set()

    def change(self, row: MetricsRow) -> Change:
        """Return what a row changes: the values to show, by step."""
        if row.seq and row.seq <= self._newest_seq:
            return self._changes.get(row.seq) or Change({})
        timeline = self._timeline
        if timeline is None:
            timeline = self._timeline = self._before(row, sums=True)
        found = timeline.change(row)
        if found.line is not None:
            found = self._before(row, sums=False).change(row)
        if row.seq:
            self._newest_seq = row.seq
            self._changes[row.seq] = found
            if len(self._changes) > _REMEMBERED:
                del self._changes[next(iter(self._changes))]
        return found

    def _before(self, row: MetricsRow, *, sums: bool) -> Timeline:
        taxonomy, history = self.run.taxonomy, self.run.run_dir / "history.jsonl"
        keeps = (lambda key: adds_up(key, taxonomy)) if sums else None
        if not row.seq or not history.exists():
            return Timeline(taxonomy, keeps)
        return Timeline.of_log(history, taxonomy, keeps, before=row.seq)
