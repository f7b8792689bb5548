"""The log of a run, `history.jsonl`: one line per row, appended in one write(2).

The last row is the run's state. This is the eighth stop of the walk.
"""

from __future__ import annotations

import logging
import os
import threading
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import attrs
import orjson

from art_core.base.errors import ConfigError, HistoryError
from art_core.base.files import close_in_children, close_lock, read_json, take_lock
from art_core.log.batches import BLANK
from art_core.metrics.row import MetricsRow

log = logging.getLogger("art_core")

SYNC_SECONDS = 2.0
_this = {"process": os.getpid()}
os.register_at_fork(after_in_child=lambda: _this.update(process=os.getpid()))
_CHUNK = 1 << 16
_LOCK_TRIES = 10
_TRAINED = b'"data/step_num_gradient_steps"'


def read_rows(path: Path, offset: int = 0) -> Iterator[tuple[MetricsRow, int]]:
    """Yield the whole rows from a byte offset on, each with the offset after it.

    Lines that are not rows are passed over with a warning; a torn last line is left for later.
    """
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            if line.strip(BLANK):
                try:
                    yield MetricsRow.from_line(line), offset
                except HistoryError as error:
                    log.warning("%s: %s", path, error)


def scenario_ids_of(path: Path) -> set[str]:
    """Return the scenario ids of a run, decoding only the rows that have new ones.

    ART keeps them in the run's `state.json` instead.
    """
    ids = former_scenario_ids(path.parent)
    with path.open("rb") as file:
        for line in file:
            if b'"_scenario_ids"' in line and line.endswith(b"\n"):
                with suppress(ValueError, KeyError, TypeError):
                    ids.update(orjson.loads(line.removeprefix(BOM_UTF8))["_scenario_ids"])
    return ids


def former_scenario_ids(run_dir: Path) -> set[str]:
    """Return the scenario ids in the `state.json` of a run that ART wrote."""
    try:
        stored = read_json(run_dir / "state.json")["_metrics_builder_state"]["unique_scenario_ids"]
    except (ConfigError, KeyError, TypeError):
        return set()
    ids = stored if isinstance(stored, list) else []
    return {scenario for scenario in ids if isinstance(scenario, str)}


def last_row(path: Path) -> MetricsRow | None:
    """Return the last whole row, reading the file from its end."""
    for line in _lines_backwards(path):
        if line.strip(BLANK):
            try:
                return MetricsRow.from_line(line)
            except HistoryError as error:
                log.warning("%s: %s", path, error)
    return None


def offset_after(path: Path, seq: int) -> int:
    """Return the offset after the last row whose seq is at most `seq`, reading the file from its
    end; 0 if there is no such row. Rows that ART wrote have no seq.
    """
    end = size = path.stat().st_size
    for line in _lines_backwards(path, size):
        with suppress(HistoryError):
            found = MetricsRow.from_line(line).seq
            if end < size and isinstance(found, int) and 0 < found <= seq:
                return end + 1
        end -= len(line) + 1
    return 0


def last_trained_step(path: Path) -> int:
    """Return the step of the last row that a training step wrote; 0 without one."""
    for line in _lines_backwards(path):
        if _TRAINED in line:
            with suppress(HistoryError):
                return MetricsRow.from_line(line).step
    return 0


def unreadable_totals(path: Path) -> list[str]:
    """Return the keys of sums over the run that are not numbers in the last row."""
    for line in _lines_backwards(path):
        with suppress(HistoryError):
            MetricsRow.from_line(line)
            record = orjson.loads(line.removeprefix(BOM_UTF8))
            return [k for k, v in record.items() if _is_sum(k) and not isinstance(v, (int, float))]
    return []


def _is_sum(key: str) -> bool:
    return "/cum/" in key or key == "time/wall_clock_sec"


def _lines_backwards(path: Path, end: int | None = None) -> Iterator[bytes]:
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
