"""A log's summary: the first, newest and best value of each metric, in a file beside the log.

The run keeps the file up to date while it logs. A reader reads the rows that are new since then, or
the whole log if the file does not fit it.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import attrs

from art_core.base.files import read_json, replace_json
from art_core.log.history import HistoryLog
from art_core.log.rows import BUFFER, attempt_of, read_batches
from art_core.log.timeline import Timeline
from art_core.metrics.taxonomy import CATALOGUE_VERSION, Direction, Taxonomy

SUMMARY_FILE = "summary.json"
GROWTH_BYTES = 1 << 20
"""Bytes that a log grows by before the run writes its summary again."""
MAX_UNREAD_BYTES = 64 << 20
"""A run leaves a log to its readers that has more bytes than this to read for a summary."""
_VERSION = 6
_PIECE_BYTES = 64 << 20
_MARK_BYTES = 256


class OutOfOrderError(Exception):
    """A row changes steps before the newest one: the log must be read as a whole."""


class TooLongError(Exception):
    """A summary needs more bytes of the log than may be read for it."""


@attrs.define
class Entry:
    """A metric on the current line of a run: its values at the first and the furthest step, and the
    best one. The newest is NaN if it was not finite.

    `settled` is the best value at the steps before `step`, the furthest, since rows may still
    change that one.
    """

    better: Direction | None
    first: float
    last: float
    first_step: int = -1
    step: int = -1
    settled: float | None = None
    settled_step: int | None = None

    @property
    def best(self) -> float | None:
        """The best value; None for sums over the run and clocks."""
        return self.last if self._is_better(self.last) else self.settled

    @property
    def best_step(self) -> int | None:
        """The step of the best value."""
        return self.step if self._is_better(self.last) else self.settled_step

    def _is_better(self, value: float) -> bool:
        if self.better is None or self.settled is None:
            return self.better is not None and not math.isnan(value)
        return value > self.settled if self.better == "higher" else value < self.settled

    def extend(self, steps: Sequence[int], values: Sequence[float]) -> None:
        """Add values at rising steps; one at the furthest step replaces the value there.

        Raises OutOfOrderError for an older step, and for the step of a value that was not finite.
        """
        again = steps[0] == self.step
        if steps[0] < self.step or (again and math.isnan(self.last)):
            raise OutOfOrderError
        if again:
            self.last = values[0]
            if self.step == self.first_step:
                self.first = self.last
            steps, values = steps[1:], values[1:]
        if not steps:
            return
        self._settle(self.last, self.step)
        earlier = values[:-1]
        if earlier and self.better:
            best = min(earlier) if self.better == "lower" else max(earlier)
            self._settle(best, steps[values.index(best)])
        self.last, self.step = values[-1], steps[-1]

    def add_nonfinite(self, step: int) -> None:
        """Record that the newest value was not finite."""
        self._settle(self.last, self.step)
        self.last, self.step = math.nan, step

    def _settle(self, value: float, step: int) -> None:
        if self._is_better(value):
            self.settled, self.settled_step = value, step


@attrs.define
class Summary:
    """What the first `offset` bytes of a log hold.

    `highest_step` is the furthest step of the current line, `earlier_step` the furthest step before
    the newest attempt. `has_trained` is True if that attempt has trained. `mark` is the start of
    the last row's line and `mark_offset` the offset of that line.
    """

    offset: int = 0
    mark: str = ""
    mark_offset: int = 0
    rows: int = 0
    attempt: int = 0
    step: int = -1
    highest_step: int = -1
    earlier_step: int = -1
    has_trained: bool = False
    started: str = ""
    ended: str = ""
    metrics: dict[str, Entry] = attrs.field(factory=dict)

    def read(self, file: BinaryIO, taxonomy: Taxonomy, *, whole: bool = False) -> None:
        """Add the rows after `offset`, piece by piece, or all at once if `whole`.

        Raises OutOfOrderError if a row changes steps before the newest one that was read.
        """
        size = file.seek(0, os.SEEK_END)
        while self.offset < size:
            before = self.offset
            line = self._line(taxonomy)
            for batch in read_batches(file, before):
                line.add_batch(batch)
                self.offset = batch.end
                self.mark = batch.line[:_MARK_BYTES].decode("latin-1")
                self.mark_offset = batch.end - len(batch.line)
                if not whole and self.offset - before >= _PIECE_BYTES:
                    break
            if self.offset == before:
                return
            self._add(line, taxonomy)

    def _line(self, taxonomy: Taxonomy) -> Timeline:
        """Return a line that goes on from here."""
        if not self.rows:
            return Timeline(taxonomy)
        newest = {key: (entry.step, entry.last) for key, entry in self.metrics.items()}
        return Timeline.continued(
            taxonomy,
            attempt=self.attempt,
            step=self.highest_step,
            earlier_step=self.earlier_step,
            has_trained=self.has_trained,
            newest=newest,
        )

    def _add(self, line: Timeline, taxonomy: Taxonomy) -> None:
        if line.first is None or line.last is None:
            return
        if self.rows and line.goes_back_to(self.highest_step):
            raise OutOfOrderError
        for key in line.kept_keys():
            self._add_curve(key, line, taxonomy)
        self.started = self.started or line.first.recorded_at.isoformat()
        self.ended = line.last.recorded_at.isoformat()
        self.attempt, self.step = attempt_of(line.last), line.last.step
        self.highest_step, self.earlier_step = line.furthest_step, line.earlier_step
        self.rows += line.rows
        self.has_trained = line.has_trained

    def _add_curve(self, key: str, line: Timeline, taxonomy: Taxonomy) -> None:
        steps, values = line.points(key)
        entry = self.metrics.get(key)
        if entry is None and steps:
            better = better_values(key, taxonomy)
            entry = Entry(better, values[0], values[0], steps[0], steps[0])
            self.metrics[key] = entry
        if entry is None:
            return
        if steps:
            entry.extend(steps, values)
        nonfinite_at = line.nonfinite_at(key)
        if nonfinite_at is not None:
            entry.add_nonfinite(nonfinite_at)

    def fits(self, file: BinaryIO) -> bool:
        """Return whether a log still has the last row that was read, where it was read."""
        file.seek(self.mark_offset)
        if file.read(len(self.mark)) != self.mark.encode("latin-1"):
            return False
        file.seek(max(self.offset - 1, 0))
        return self.offset == 0 or file.read(1) == b"\n"


def better_values(key: str, taxonomy: Taxonomy) -> Direction | None:
    """Return which values of a metric are better; by default the higher ones.

    Returns None for sums over the run and for clocks.
    """
    spec = taxonomy.spec(key)
    if spec.derived and ("/cum/" in key or spec.unit == "s"):
        return None
    return spec.direction or "higher"


def read_summary(history: Path, taxonomy: Taxonomy, *, max_bytes: float = math.inf) -> Summary:
    """Return a log's summary; read what is new in the log since its file was written, and write it.

    The whole log is read if the file does not fit it, and if new rows change older steps. Raises
    TooLongError if more than `max_bytes` would have to be read.
    """
    with history.open("rb", buffering=BUFFER) as file:
        size = file.seek(0, os.SEEK_END)
        summary = load_summary(history, file, taxonomy)
        before = summary.offset
        if before == size:
            return summary
        if size - before > max_bytes:
            raise TooLongError
        try:
            summary.read(file, taxonomy)
        except OutOfOrderError:
            if size > max_bytes:
                raise TooLongError from None
            summary = Summary()
            summary.read(file, taxonomy, whole=True)
    if summary.offset != before:
        _write(summary, history)
    return summary


def load_summary(history: Path, file: BinaryIO, taxonomy: Taxonomy) -> Summary:
    """Return the summary beside an open log; an empty one if there is none that fits the log."""
    try:
        stored = read_json(history.with_name(SUMMARY_FILE))
        if stored.pop("version") != [_VERSION, CATALOGUE_VERSION]:
            return Summary()
        metrics = {key: _entry(values) for key, values in stored.pop("metrics").items()}
        summary = Summary(**stored, metrics=metrics)
        fits = summary.fits(file)
        known = all(e.better == better_values(k, taxonomy) for k, e in metrics.items())
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return Summary()
    return summary if fits and known else Summary()


def _entry(stored: Sequence[Any]) -> Entry:
    better, first, last, *others = stored
    return Entry(better, first, math.nan if last is None else last, *others)


def _write(summary: Summary, history: Path) -> None:
    page = attrs.asdict(summary, recurse=False) | {
        "version": [_VERSION, CATALOGUE_VERSION],
        "metrics": {key: attrs.astuple(entry) for key, entry in summary.metrics.items()},
    }
    # The directory may be read-only. Then each reader reads the log.
    with suppress(OSError):
        replace_json(history.with_name(SUMMARY_FILE), page, sync=False)


@attrs.define(eq=False, repr=False)
class SummaryWriter:
    """Writes the summary of an open log with each megabyte that it grows by, and at the end.

    A log that needs much reading for a summary is left to its readers.
    """

    history: HistoryLog
    taxonomy: Taxonomy
    lock: threading.Lock = attrs.field(factory=threading.Lock)
    _size: int = 0
    _closed: bool = False

    def after_sync(self) -> None:
        """Write the summary if the log has grown enough and no other thread writes it."""
        if self.history.size - self._size < GROWTH_BYTES:
            return
        if self.lock.acquire(blocking=False):
            try:
                if not self._closed:
                    self._size = self.history.size
                    self._update()
            finally:
                self.lock.release()

    def stop(self) -> None:
        """Stop writing the summary."""
        self._closed = True

    def close(self) -> None:
        """Write the summary for the last time."""
        self._closed = True
        with self.lock:
            self._update()

    def _update(self) -> None:
        # The log may have been deleted in the meantime.
        with suppress(FileNotFoundError, TooLongError):
            read_summary(self.history.path, self.taxonomy, max_bytes=MAX_UNREAD_BYTES)
