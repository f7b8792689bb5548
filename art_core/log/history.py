"""The log of a run, `history.jsonl`: one line per row of metrics, appended in one write(2).

The last row is the run's state.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import attrs
from orjson import OPT_APPEND_NEWLINE, JSONDecodeError, JSONEncodeError, dumps, loads

from art_core.base.errors import HistoryError
from art_core.base.files import close_in_children, close_lock, take_lock

log = logging.getLogger("art_core")

SCHEMA = 1
_INT_LIMIT = 1 << 63
_CLOCKS = frozenset({"time/wall_clock_sec", "time/attempt_sec"})


# A dict class whose fields have an order: frozen ones of these are made in half the time.
@attrs.frozen(slots=False)
class MetricsRow:
    """A step's metrics on one split.

    `seq` counts the run's rows from 1 and is the key to drop repeats by. `attempt` counts the times
    that the run was opened to log. `metrics` are finite floats; `nonfinite` has the other values,
    as text. `scenario_ids` are in no earlier row. `receipts` are the calls and device time behind
    the costs, with their prices. `cursor` is how far the run's queue is trained, `paid` how far its
    paid calls are booked. `covered` dollars of the run were counted by its budget before a row.
    """

    seq: int
    attempt: int
    step: int
    split: str
    recorded_at: datetime
    metrics: dict[str, float]
    nonfinite: dict[str, str] = attrs.field(factory=dict)
    scenario_ids: tuple[str, ...] = ()
    receipts: tuple[dict[str, Any], ...] = ()
    cursor: int | None = None
    paid: int | None = None
    covered: float | None = None

    def is_behind(self, other: MetricsRow | None) -> bool:
        """Return True if a row logged before belongs to a later step of the same attempt."""
        if other is None or other.seq >= self.seq or other.attempt != self.attempt:
            return False
        return self.step < other.step

    def without_totals(self) -> MetricsRow:
        """Return the row without the sums over the run, its clocks and its average speeds.

        A row that is behind has those of the time when it was logged. A curve over steps would show
        them at an old step.
        """
        of_step = {key: value for key, value in self.metrics.items() if not is_total(key)}
        return attrs.evolve(self, metrics=of_step)

    def to_line(self) -> bytes:
        """Return the row as one line of strict JSON, with all keys on one level as in ART's files.

        Values that JSON can't hold are converted or dropped, with a warning.
        """
        try:
            return _line(self)
        except JSONEncodeError as error:
            log.warning(
                "step %d: a part of the row can't be written as it is (%s): converted, or left out",
                self.step,
                error,
            )
            return _line(
                attrs.evolve(
                    self,
                    split=plain(self.split),
                    metrics=plain(self.metrics),
                    nonfinite=plain(self.nonfinite),
                    scenario_ids=tuple(map(plain, self.scenario_ids)),
                    receipts=tuple(map(plain, self.receipts)),
                )
            )

    @classmethod
    def from_line(cls, line: bytes) -> MetricsRow:
        """Read a row, also one that ART wrote; HistoryError for any other line. A byte order mark,
        which some editors put at a file's start, is skipped.
        """
        try:
            record = loads(line.removeprefix(BOM_UTF8))
        except JSONDecodeError as error:
            raise _not_a_row(line, error) from error
        return cls.from_record(record)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> MetricsRow:
        """Read a row back from a line's JSON object; HistoryError for one that is not a row."""
        try:
            recorded_at = datetime.fromisoformat(record["recorded_at"])
            return cls(
                seq=record.get("seq", 0),
                attempt=record.get("attempt", 0),
                step=int(record["step"] if "step" in record else record["training_step"]),
                split=record.get("split", ""),
                # ART writes local time without a zone.
                recorded_at=recorded_at if recorded_at.tzinfo else recorded_at.astimezone(UTC),
                metrics={
                    k: float(v)
                    for k, v in record.items()
                    if "/" in k and isinstance(v, (int, float))
                },
                nonfinite=record.get("_nonfinite", {}),
                scenario_ids=tuple(record.get("_scenario_ids", ())),
                receipts=tuple(record.get("_receipts", ())),
                cursor=record.get("_cursor"),
                paid=record.get("_paid"),
                covered=record.get("_covered"),
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise _not_a_row(dumps(record), error) from error


def _not_a_row(line: bytes, error: Exception) -> HistoryError:
    return HistoryError(f"not a row of metrics: {line[:80]!r} ({error})")


def is_total(key: str) -> bool:
    """Return whether a key is about the whole run: a sum, a clock or an average speed."""
    return key in _CLOCKS or key.startswith("throughput/avg_") or "cum" in key.split("/")[1:]


def _line(row: MetricsRow) -> bytes:
    envelope: dict[str, Any] = {
        "schema": SCHEMA,
        "seq": row.seq,
        "attempt": row.attempt,
        "step": row.step,
        "split": row.split,
        "recorded_at": row.recorded_at,
    }
    for name in ("nonfinite", "scenario_ids", "receipts", "cursor", "paid", "covered"):
        value = getattr(row, name)
        if value or value == 0:
            envelope[f"_{name}"] = value
    if not row.metrics:
        return dumps(envelope, option=OPT_APPEND_NEWLINE)
    metrics = dumps(row.metrics, option=OPT_APPEND_NEWLINE)
    return b"%b,%b" % (dumps(envelope)[:-1], metrics[1:])


def plain(value: Any) -> Any:
    """Return a value that JSON can hold: text as UTF-8, numbers as floats or ints of 64 bits. Parts
    that can't be converted are dropped: null in a list, no key in an object.
    """
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, Mapping):
        parts = {plain(str(key)): plain(item) for key, item in value.items()}
        return {key: item for key, item in parts.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, int) and abs(value) < _INT_LIMIT:
        return value
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
    return number if math.isfinite(number) else None


SYNC_SECONDS = 2.0
_this = {"process": os.getpid()}
os.register_at_fork(after_in_child=lambda: _this.update(process=os.getpid()))
_CHUNK = 1 << 16
_LOCK_TRIES = 10
BLANK = b"\r\n\0 "
"""The bytes of an empty line."""


def last_row(path: Path) -> MetricsRow | None:
    """Return the last whole row, reading the file from its end."""
    for line in lines_backwards(path):
        if line.strip(BLANK):
            try:
                return MetricsRow.from_line(line)
            except HistoryError as error:
                log.warning("%s: %s", path, error)
    return None


def lines_backwards(path: Path, end: int | None = None) -> Iterator[bytes]:
    """Yield the lines of a file from its end, or from the byte `end` backwards."""
    with path.open("rb") as file:
        rest, end = b"", file.seek(0, os.SEEK_END) if end is None else end
        while end:
            start = max(0, end - _CHUNK)
            rest, *lines = (os.pread(file.fileno(), end - start, start) + rest).split(b"\n")
            yield from reversed(lines)
            end = start
        yield rest


@attrs.define
class HistoryLog:
    """The open log of a run. It appends rows and holds a lock, so that no other object does.

    `after_sync` is called on the thread that syncs rows, a few seconds after they were appended.
    """

    path: Path
    last: MetricsRow | None
    _fd: int
    _size: int
    _pid: int = attrs.field(factory=os.getpid)
    after_sync: Callable[[], None] | None = None
    _timer: threading.Timer | None = None
    _unusable: tuple[str, str] | None = None
    _lock: threading.Lock = attrs.field(factory=threading.Lock, repr=False)

    @classmethod
    def open(cls, path: Path) -> HistoryLog:
        """Open or create the log, repair a torn tail and read the last row.

        Raises HistoryError when another process or object has it open, or the directory can't be
        written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise HistoryError(
                f"cannot open {path}: {error.strerror}", "Choose another base_path."
            ) from error
        if not take_lock(fd, tries=_LOCK_TRIES):
            os.close(fd)  # another process holds the lock
            raise HistoryError(
                f"the run in {path.parent} is in use by another process",
                "End that one, or give this model another name.",
            )
        close_in_children(fd)
        try:
            _repair(fd, path)
            return cls(path, last_row(path), fd, os.fstat(fd).st_size)
        except OSError as error:
            close_lock(fd)
            raise HistoryError(
                f"cannot repair the torn end of {path}: {error}", "Free space, then open it again."
            ) from error

    def append(self, row: MetricsRow) -> None:
        """Append a row. When this returns, the row survives the death of the process.

        Raises HistoryError, with the file as it was, if the disk does not take the whole row. After
        any other exception, such as Ctrl-C, `last` is this row if it was written.
        """
        if self.forked:  # another thread may have held the lock when the process was forked
            self._refuse()
        line = row.to_line()
        size = len(line)
        with self._lock:
            if self._unusable is not None:
                self._refuse()
            try:
                written = os.write(self._fd, line)
            except OSError as error:
                self._undo(str(error.strerror), error)
            except BaseException:
                # The handler of a signal such as Ctrl-C raised. A row that was written whole stays.
                if os.fstat(self._fd).st_size != self._size + size:
                    os.ftruncate(self._fd, self._size)
                else:
                    self._size, self.last = self._size + size, row
                raise
            if written != size:
                self._undo(f"the disk took {written} of {size} bytes")
            self._size += written
            self.last = row
            if self._timer is None:
                self._sync_soon()

    def sync(self) -> None:
        """Wait until all rows are on the disk, so that they survive the death of the machine.

        If the log's file was deleted, the next `append` raises.
        """
        if self.forked:
            return
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._fd >= 0:
                os.fdatasync(self._fd)
                if os.fstat(self._fd).st_nlink == 0:
                    self._unusable = (
                        "was deleted while in use",
                        "Open the run again to begin a new log.",
                    )

    def close(self) -> None:
        """Sync and free the lock; a second call does nothing."""
        if self._fd >= 0 and not self.forked:
            self.sync()
            with self._lock:
                close_lock(self._fd)
                self._fd, self._unusable = -1, ("is closed", "Log before model.close().")

    def hand_over(self, problem: str, remedy: str) -> HistoryLog:
        """Return the log for another object, with the lock held throughout. This object refuses
        further rows with `problem` and `remedy`.
        """
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            os.fdatasync(self._fd)
            other = HistoryLog(self.path, self.last, self._fd, self._size)
            self._fd, self._unusable = -1, (problem, remedy)
        return other

    @property
    def identity(self) -> tuple[int, int]:
        """The file's device and number, which are the same for all paths to the file."""
        return file_identity(os.fstat(self._fd))

    @property
    def size(self) -> int:
        """Bytes of the log."""
        return self._size

    @property
    def forked(self) -> bool:
        """True in a child process: the log belongs to the parent."""
        return self._pid != _this["process"]

    def _refuse(self) -> NoReturn:
        forked = ("was opened before this process was forked", "Log from the parent process.")
        problem, remedy = self._unusable or forked
        raise HistoryError(f"{self.path} {problem}", remedy)

    def _undo(self, reason: str, cause: OSError | None = None) -> NoReturn:
        os.ftruncate(self._fd, self._size)
        raise HistoryError(
            f"cannot write {self.path}: {reason}", "Free space, then log again: nothing is lost."
        ) from cause

    def _sync_later(self) -> None:
        self.sync()
        if self.after_sync is not None:
            self.after_sync()

    def _sync_soon(self) -> None:
        self._timer = threading.Timer(SYNC_SECONDS, self._sync_later)
        self._timer.daemon = True
        try:
            self._timer.start()
        except RuntimeError:
            # No thread can be started, or the interpreter ends. `close` syncs the row.
            self._timer = None


def file_identity(found: os.stat_result) -> tuple[int, int]:
    """Return a file's device and number."""
    return found.st_dev, found.st_ino


def _repair(fd: int, path: Path) -> None:
    size = os.fstat(fd).st_size
    good = _whole_bytes(fd, size)
    if good == size:
        return
    torn = os.pread(fd, size - good, good)
    with path.with_name("history.torn").open("ab") as file:
        file.write(torn + b"\n")
    os.ftruncate(fd, good)
    log.warning("%s ended in a torn line of %d bytes: moved to history.torn", path, len(torn))


def _whole_bytes(fd: int, size: int) -> int:
    end = size
    while end:
        start = max(0, end - _CHUNK)
        at = os.pread(fd, end - start, start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0
