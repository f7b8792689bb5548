"""Resumed runs. MLflow keeps every point, so an attempt that repeats steps gets another run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from art_core import HistoryError, MetricsRow


def logged_before(history: Path, seq: int) -> list[MetricsRow]:
    """Return the rows of a log before a seq; lines that are no rows are left out."""
    rows = [_row(line) for line in history.read_bytes().splitlines()] if history.exists() else []
    return [row for row in rows if row is not None and row.seq < seq]


def current(rows: Iterable[MetricsRow]) -> list[MetricsRow]:
    """Return the rows that no later attempt replaces: its first trained row replaces all rows of
    earlier attempts from its step on.
    """
    kept: list[MetricsRow] = []
    resumed = 1
    for row in rows:
        if row.is_trained and row.attempt > resumed:
            resumed = row.attempt
            kept = [k for k in kept if k.attempt == resumed or k.step < row.step]
        kept.append(row)
    return kept


def _row(line: bytes) -> MetricsRow | None:
    try:
        return MetricsRow.from_line(line)
    except HistoryError:
        return None
