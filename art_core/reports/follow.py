"""A run's curves, kept up to date while another process logs."""

from __future__ import annotations

import os
from collections.abc import Iterable

import attrs

from art_core.log.reader import LoggedRun
from art_core.log.rows import BUFFER, Batch, read_batches
from art_core.log.timeline import Timeline

_LEARNED = ("reward/", "loss/")


@attrs.define
class AttemptSpan:
    """The steps that an attempt trained, from the first to the furthest."""

    attempt: int
    first: int
    last: int


@attrs.define(eq=False)
class Follower:
    """Reads a run's log once, and then only what is new in it.

    `line` is the current line of the metrics that were requested so far, and `spans` are the
    attempts that trained, in the order of the log.
    """

    run: LoggedRun
    line: Timeline = attrs.field(init=False)
    spans: list[AttemptSpan] = attrs.field(factory=list)
    _keys: set[str] = attrs.field(factory=set)
    _file: int = -1
    _offset: int = 0

    def __attrs_post_init__(self) -> None:
        self._restart()

    def read(self, keys: Iterable[str]) -> Timeline:
        """Return the current line, which has these metrics. A torn last line is left for later.

        The log is read from its start if one of the metrics was not requested before, or if another
        file has taken its place. Raises OSError for a log that can't be read.
        """
        with self.run.history.open("rb", buffering=BUFFER) as file:
            stat = os.fstat(file.fileno())
            replaced = stat.st_ino != self._file or stat.st_size < self._offset
            if replaced or not self._keys.issuperset(keys):
                self._keys.update(keys)
                self._restart()
                self._file = stat.st_ino
            for batch in read_batches(file, self._offset):
                self.line.add_batch(batch)
                self._add_spans(batch)
                self._offset = batch.end
        return self.line

    def _restart(self) -> None:
        self.line = Timeline(self.run.taxonomy, frozenset(self._keys).__contains__)
        self.spans, self._offset = [], 0

    def _add_spans(self, batch: Batch) -> None:
        """Extend the spans by the rows of trained steps; rows of a batch have the same metrics."""
        fields, rows = batch.fields, batch.rows
        if "step" not in fields or not any(name.startswith(_LEARNED) for name in fields):
            return
        names = [fields.index(name) if name in fields else None for name in ("attempt", "split")]
        step = fields.index("step")
        # Between the first and the last row of an attempt, nothing is to be learned.
        ends = [[row[at] for at in names if at is not None] for row in (rows[0], rows[-1])]
        for row in (rows[0], rows[-1]) if ends[0] == ends[1] else rows:
            attempt, split = (None if at is None else row[at] for at in names)
            if split in ("train", None) and isinstance(row[step], int):
                self._add(attempt if isinstance(attempt, int) else 1, row[step])

    def _add(self, attempt: int, step: int) -> None:
        last = self.spans[-1] if self.spans else None
        if last is None or last.attempt != attempt:
            self.spans.append(AttemptSpan(attempt, step, step))
        else:
            last.last = max(last.last, step)
