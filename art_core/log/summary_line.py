"""The summary of a log whose rows change older steps: made from the run's current line."""

from __future__ import annotations

from typing import BinaryIO

from art_core.base.errors import HistoryError
from art_core.log.summary_page import Entry, Summary, better_values
from art_core.log.timeline import Timeline, attempt_of
from art_core.metrics.row import MetricsRow
from art_core.metrics.taxonomy import Taxonomy

_BLANK = b"\r\n\0 "


def summary_of_line(file: BinaryIO, taxonomy: Taxonomy) -> Summary:
    """Return the summary of a whole log; a torn last line is left out."""
    page, line = Summary(), Timeline(taxonomy)
    file.seek(0)
    for text in file:
        if not text.endswith(b"\n"):
            break
        page.offset += len(text)
        if text.strip(_BLANK):
            _read(text, page, line)
    page.rows = line.rows
    page.highest_step = line.furthest_step
    page.begun = line.has_begun
    page.earlier_step = line.earlier_step
    for key, curve in line.curves().items():
        if curve:
            page.metrics[key] = _entry(key, curve, line, taxonomy)
    return page


def _read(text: bytes, page: Summary, line: Timeline) -> None:
    try:
        row = MetricsRow.from_line(text)
    except HistoryError:
        page.skipped += 1
        return
    line.add(row)
    page.attempt, page.step = attempt_of(row), row.step
    page.started = page.started or row.recorded_at.isoformat()
    page.ended = row.recorded_at.isoformat()


def _entry(key: str, curve: dict[int, float], line: Timeline, taxonomy: Taxonomy) -> Entry:
    steps = list(curve)
    first, last = steps[0], steps[-1]
    entry = Entry(better_values(key, taxonomy), curve[first], curve[last], first, last)
    for step in steps[:-1]:
        entry.take(curve[step], step)
    nonfinite_at = line.nonfinite_at(key)
    if nonfinite_at is not None:
        entry.add_nonfinite(nonfinite_at)
    return entry
