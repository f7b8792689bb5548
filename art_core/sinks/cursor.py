"""The cursor of a sink: a place in the log, replaced whole after each batch that the sink took."""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path
from typing import BinaryIO

import attrs
import orjson

from art_core.base.errors import HistoryError, SinkError
from art_core.base.files import close_in_children, replace_json, take_lock
from art_core.log.history import MetricsRow
from art_core.log.rows import read_rows

BATCH = 500
MARKED_BYTES = 4096


@attrs.frozen
class Cursor:
    """A place in the log: the byte offset after the last delivered row, and that row's seq.

    `mark` is a digest of the bytes before the offset; "" in files of earlier releases.
    """

    offset: int = 0
    seq: int = 0
    mark: str = attrs.field(default="", eq=False)


def load_cursor(path: Path) -> Cursor:
    """Read a cursor. One that is missing or unreadable begins again: sinks drop repeated rows."""
    try:
        stored = orjson.loads(path.read_bytes())
        offset, seq = max(0, int(stored["offset"])), int(stored["seq"])
        return Cursor(offset=offset, seq=seq, mark=str(stored.get("mark", "")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Cursor()


def save_cursor(path: Path, cursor: Cursor) -> None:
    """Replace a cursor's file whole."""
    replace_json(path, attrs.asdict(cursor), sync=False)


def cursor_at(history: Path, offset: int, seq: int) -> Cursor:
    """Return the cursor of an offset, after the row `seq`."""
    with history.open("rb") as file:
        return Cursor(offset=offset, seq=seq, mark=_mark(file, offset))


def valid_cursor(history: Path, cursor: Cursor) -> Cursor:
    """Return a cursor of this log as it is, else the beginning. The cursor is of another log if the
    log was restored from a backup, begun again, or lost its end in a crash of the machine.
    """
    with history.open("rb") as file:
        return cursor if _fits(file, cursor) else Cursor()


def _fits(file: BinaryIO, cursor: Cursor) -> bool:
    if cursor.offset == 0:
        return True
    if cursor.offset > os.fstat(file.fileno()).st_size:
        return False
    if cursor.mark:
        return _mark(file, cursor.offset) == cursor.mark
    return _seq_before(file, cursor.offset) == cursor.seq


def _mark(file: BinaryIO, offset: int) -> str:
    """Return a digest of the last bytes before an offset: rows hold the time and their seq."""
    file.seek(max(0, offset - MARKED_BYTES))
    return hashlib.blake2b(file.read(min(offset, MARKED_BYTES)), digest_size=16).hexdigest()


def _seq_before(file: BinaryIO, offset: int) -> int | None:
    """Return the seq of the row that ends at an offset; None if no row does."""
    size = MARKED_BYTES
    while True:
        start = max(0, offset - size)
        file.seek(start)
        before = file.read(offset - start)
        if not before.endswith(b"\n"):
            return None
        _, newline, line = before[:-1].rpartition(b"\n")
        if newline or start == 0:
            break
        size *= 2
    try:
        return MetricsRow.from_line(line).seq
    except HistoryError:
        return None


def lock_cursor(path: Path) -> int:
    """Take the lock of a cursor, so that only one process moves it; return its descriptor.
    `close_lock`, or the end of the process, frees it. -1 if no file can be made, hence no cursor.

    Raises SinkError if the lock is taken.
    """
    try:
        # Not the run's directory: when it was renamed, the old name must stay free.
        path.parent.mkdir(exist_ok=True)
        fd = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError:
        return -1
    if not take_lock(fd):
        os.close(fd)
        raise SinkError(
            f"sink {path.stem!r} is already being served by another process or model",
            "Wait for that one to end: it delivers the same rows.",
        )
    close_in_children(fd)
    return fd


def rows_after(
    history: Path, cursor: Cursor, until: float = math.inf
) -> tuple[list[MetricsRow], Cursor]:
    """Return the next rows before offset `until`, 500 at most, and the cursor after them.

    If the cursor is of another log, rows are read from the beginning.
    """
    cursor = valid_cursor(history, cursor)
    rows: list[MetricsRow] = []
    end = cursor.offset
    for row, offset in read_rows(history, cursor.offset):
        if offset > until:
            break
        rows.append(row)
        end = offset
        if len(rows) == BATCH:
            break
    return rows, cursor_at(history, end, rows[-1].seq) if rows else cursor


def count_after(history: Path, cursor: Cursor) -> int:
    """Count the rows after a cursor. Raises OSError if the log cannot be read."""
    count = 0
    while True:
        rows, cursor = rows_after(history, cursor)
        count += len(rows)
        if not rows:
            return count
