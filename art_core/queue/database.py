"""SQLite with a writing thread: all operations that wait are one commit, one sync of the disk."""

from __future__ import annotations

import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import attrs

from art_core.base.errors import HistoryError

T = TypeVar("T")
Operation = Callable[[sqlite3.Connection], Any]
MAX_OPERATIONS = 256
"""Operations of one commit."""
BUSY_S = 60.0
"""How long a commit waits for another process that writes."""
PAGES = 4_000
"""Pages in the WAL after which SQLite moves them into the database."""


@attrs.define(eq=False)
class _Waiting:
    operation: Operation
    result: Future[Any] = attrs.field(factory=Future)


class Database:
    """A database in WAL mode, safe under threads; other processes may have it open too.

    An operation is a function of the connection. It may run twice, so it must change nothing else.
    """

    def __init__(self, path: Path, schema: str) -> None:
        self._path, self._pid = path, os.getpid()
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._connected()) as db:
                db.executescript(schema)
        except (OSError, sqlite3.Error) as error:
            raise HistoryError(
                f"cannot open the queue {path}: {error}", "Mend the directory, or free space."
            ) from error
        self._thread: threading.Thread | None = threading.Thread(
            target=self._write_all, name="art-queue", daemon=True
        )
        self._thread.start()

    def write(self, operation: Callable[[sqlite3.Connection], T]) -> Future[T]:
        """Run an operation; the future has its result when the disk has its changes.

        The future raises what the operation raises, and HistoryError if the disk does not take the
        changes; then nothing has changed.
        """
        if self._thread is None or self._pid != os.getpid():
            why = "is closed" if self._thread is None else "was opened before this process forked"
            raise HistoryError(f"the queue {self._path} {why}", "Open it again.")
        waiting = _Waiting(operation)
        self._waiting.put(waiting)
        return waiting.result

    def read(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Run an operation that only reads, on this thread, beside the writing ones."""
        with closing(self._connected()) as db:
            return operation(db)

    def close(self) -> None:
        """Finish what waits and close the database; a second call does nothing."""
        thread, self._thread = self._thread, None
        if thread is not None and self._pid == os.getpid():
            self._waiting.put(None)
            thread.join()

    def _connected(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None)
        db.execute("pragma journal_mode = wal")
        db.execute("pragma synchronous = full")
        db.execute(f"pragma wal_autocheckpoint = {PAGES}")
        return db

    def _write_all(self) -> None:
        with closing(self._connected()) as db:
            while (first := self._waiting.get()) is not None:
                batch = [first]
                while len(batch) < MAX_OPERATIONS and not self._waiting.empty():
                    following = self._waiting.get()
                    if following is None:
                        self._waiting.put(None)
                        break
                    batch.append(following)
                self._commit(db, [w for w in batch if w.result.set_running_or_notify_cancel()])

    def _commit(self, db: sqlite3.Connection, batch: Sequence[_Waiting]) -> None:
        try:
            with _transaction(db):
                results = [_alone(db, each.operation) for each in batch]
        except sqlite3.Error as error:
            # One of them may be too large for the disk; the others may fit.
            if len(batch) > 1:
                for each in batch:
                    self._commit(db, [each])
                return
            problem = HistoryError(
                f"cannot write the queue {self._path}: {error}",
                "Free space, then do it again: nothing of it was stored, and nothing is lost.",
            )
            problem.__cause__ = error
            results = [problem]
        for each, result in zip(batch, results, strict=True):
            if isinstance(result, BaseException):
                each.result.set_exception(result)
            else:
                each.result.set_result(result)


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("begin immediate")
    try:
        yield
        db.execute("commit")
    except BaseException:
        if db.in_transaction:  # after some errors SQLite has rolled back
            db.execute("rollback")
        raise


def _alone(db: sqlite3.Connection, operation: Operation) -> Any:
    """Return the result of an operation, or its error, with nothing changed by it."""
    db.execute("savepoint one")
    try:
        result = operation(db)
    except sqlite3.Error:
        raise
    except Exception as error:
        db.execute("rollback to one")
        result = error
    db.execute("release one")
    return result
