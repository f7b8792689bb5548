"""How far a sink has come in the log: an offset and a seq, replaced whole after each acknowledged
batch.
"""

from __future__ import annotations

import fcntl
import math
import os
from pathlib import Path

import attrs
import orjson

from art_core.errors import SinkError
from art_core.files import replace_json
from art_core.forks import close_in_children
from art_core.metrics.history import read_rows
from art_core.metrics.row import MetricsRow

BATCH = 500


@attrs.frozen
class Cursor:
    """A place in the log: the byte offset after the last delivered row, and that row's seq."""

    offset: int = 0
    seq: int = 0


def load_cursor(path: Path) -> Cursor:
    """Read a cursor; one that is missing or unreadable stands at the beginning: repeats are the
    sink's to drop.
    """
    try:
        stored = orjson.loads(path.read_bytes())
        return Cursor(offset=max(0, int(stored["offset"])), seq=int(stored["seq"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Cursor()


def save_cursor(path: Path, cursor: Cursor) -> None:
    """Replace a cursor's file whole."""
    replace_json(path, {"offset": cursor.offset, "seq": cursor.seq}, sync=False)


def lock_cursor(path: Path) -> int:
    """Take the lock of a cursor, so that only one process moves it; `close_lock` of the descriptor,
    or the end of the process, frees it. -1 where no file can be made, hence no cursor either.

    Raises SinkError when it is taken.
    """
    try:
        # Not the run's directory: when it was renamed, the old name must stay free.
        path.parent.mkdir(exist_ok=True)
        fd = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError:
        return -1
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise SinkError(
            f"sink {path.stem!r} is already being served by another process or model",
            "Wait for that one to end: it delivers the same rows.",
        ) from error
    close_in_children(fd)
    return fd


def rows_after(
    history: Path, cursor: Cursor, until: float = math.inf
) -> tuple[list[MetricsRow], Cursor]:
    """Return the next rows, 500 at most, and the cursor after them; none from offset `until` on.

    A log shorter than the cursor is another one, or lost its end with the machine: it is read anew.
    """
    if cursor.offset > history.stat().st_size:
        cursor = Cursor()
    rows: list[MetricsRow] = []
    for row, offset in read_rows(history, cursor.offset):
        if offset > until:
            break
        rows.append(row)
        cursor = Cursor(offset=offset, seq=row.seq)
        if len(rows) == BATCH:
            break
    return rows, cursor


def count_after(history: Path, cursor: Cursor) -> int:
    """Count the rows after a cursor. Raises OSError for a log that can't be read."""
    count = 0
    while True:
        rows, cursor = rows_after(history, cursor)
        count += len(rows)
        if not rows:
            return count
