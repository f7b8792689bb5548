"""Delivery: each sink follows the log on its own thread, with its own cursor and failures."""

from __future__ import annotations

import logging
import math
import random
import shlex
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import attrs

from art_core.base.files import close_lock
from art_core.log.rundir import history_file
from art_core.sinks.cursor import (
    Cursor,
    count_after,
    cursor_at,
    load_cursor,
    lock_cursor,
    rows_after,
    save_cursor,
    valid_cursor,
)
from art_core.sinks.protocol import RunInfo, Sink, SinkSpec

log = logging.getLogger("art_core")

FIRST_WAIT_S, MAX_WAIT_S = 0.5, 60.0
BREAK_AFTER = 6


@attrs.frozen(kw_only=True)
class DeliveryReport:
    """The state of a sink when it was closed. `error` is the failure because of which rows are
    missing, None if none are. `failures` counts the tries that failed in a row.
    """

    sink: str
    undelivered: int
    error: str | None
    failures: int = attrs.field(default=0, eq=False)


def wait_after(failures: int) -> float:
    """Seconds to wait after failures in a row: doubled each time up to a minute, with jitter."""
    doubled = min(MAX_WAIT_S, FIRST_WAIT_S * 2.0 ** min(failures - 1, 10))
    return doubled * random.uniform(0.5, 1.0)


@attrs.define(eq=False)
class Follower:
    """Delivers the rows of a log to one sink: in order, at least once, beside the trainer.

    After a failure it waits (`wait_after`) and logs one warning per outage. After six failures in a
    row the circuit is open: it logs another warning, and `close` tries once more, not until its
    deadline. No rows are kept in memory: undelivered rows are in the log.
    """

    spec: SinkSpec
    run: RunInfo
    history: Path
    newest: int = 0
    predecessor: Follower | None = None
    cursor: Cursor = attrs.field(init=False)
    error: str | None = None
    _failures: int = 0
    _sink: Sink | None = None
    opened: bool = False
    _opened_as: RunInfo = attrs.field(init=False)
    _lock: int | None = None
    _last_try: bool = False
    _woken: threading.Event = attrs.field(factory=threading.Event)
    _closing: threading.Event = attrs.field(factory=threading.Event)
    _deadline: float = math.inf
    _until: float = math.inf
    _thread: threading.Thread = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.run = self._opened_as = attrs.evolve(self.run, sink=self.spec.name)
        self.cursor = load_cursor(self.cursor_file)
        if not self.spec.backlog:
            self.cursor = cursor_at(self.history, self.history.stat().st_size, self.newest)
        self._thread = threading.Thread(
            target=self._follow, name=f"art-sink-{self.spec.name}", daemon=True
        )
        self._thread.start()

    @property
    def cursor_file(self) -> Path:
        """The file of this sink's cursor."""
        return self.run.run_dir / "sinks" / f"{self.spec.name}.cursor"

    def wake(self, newest: int) -> None:
        """Deliver new rows, up to the one with the `seq` `newest`."""
        self.newest = newest
        self._woken.set()

    def close(
        self,
        deadline: float,
        status: str = "finished",
        reason: str | None = None,
        until: float = math.inf,
    ) -> None:
        """Ask to finish by a `time.monotonic()`; `join` waits for it. The sink's `close` gets the
        run's status and the reason of a failure. A successor gets the rows from offset `until` on.
        """
        self._deadline, self._until = deadline, until
        self.run = attrs.evolve(self.run, status=status, reason=reason)
        # A successor tries again, and from the same cursor.
        self._last_try = self._failures >= BREAK_AFTER or until < math.inf
        self._closing.set()
        self._woken.set()

    @property
    def at_work(self) -> bool:
        """True until `close` has finished or given up."""
        return self._thread.is_alive()

    def wait(self) -> None:
        """Wait until `close` has finished, or its deadline is past."""
        self._thread.join(max(0.0, self._deadline - time.monotonic()))

    def join(self) -> DeliveryReport:
        """Wait until the rest is delivered or the deadline is past; report what is missing."""
        self.wait()
        error = self.error
        if self.at_work and error is None:
            error = "did not finish in time"
        return DeliveryReport(
            sink=self.spec.name,
            undelivered=self.missing(),
            error=error,
            failures=self._failures,
        )

    def missing(self) -> int:
        """Count the undelivered rows, also if the log was moved or deleted."""
        try:
            return count_after(self.history, self.cursor)
        except OSError:
            return max(0, self.newest - self.cursor.seq)

    def _follow(self) -> None:
        if self.predecessor is not None:
            self.predecessor.wait()
            self.predecessor = None
        try:
            self._follow_on()
        finally:
            if self._lock is not None and self._lock >= 0:
                close_lock(self._lock)

    def _follow_on(self) -> None:
        while True:
            try:
                self._woken.clear()
                finished = self._deliver()
            except BaseException as error:
                if not self._failed(error):
                    return
                continue
            if finished:
                return
            self._woken.wait()

    def _deliver(self) -> bool:
        """Deliver the rows of the log; return True if the sink was closed and nothing is left."""
        closing = self._closing.is_set()
        if self._lock is None and self.spec.backlog:
            self._take_cursor()
        if self._sink is None:
            self._sink = self.spec.create()
        if not self.opened:
            self._sink.open(self._opened_as)
            self.opened = True
        while True:
            rows, cursor = rows_after(self.history, self.cursor, self._until)
            if not rows:
                break
            self._sink.write(rows)
            self.cursor = cursor
            if self.spec.backlog:
                save_cursor(self.cursor_file, cursor)
            self._failures, self.error = 0, None
        if closing:
            self._sink.close(self.run)
        self._failures, self.error = 0, None
        return closing

    def _take_cursor(self) -> None:
        stored = load_cursor(self.cursor_file)
        self._lock = lock_cursor(self.cursor_file)
        self.cursor = valid_cursor(self.history, stored)
        if self.cursor != stored:
            # The cursor was of another log; other processes read the file.
            save_cursor(self.cursor_file, self.cursor)

    def _failed(self, error: BaseException) -> bool:
        """Record a failure and wait; return False if there is no time to try again."""
        self.error = f"{type(error).__name__}: {error}"
        self._failures += 1
        if self._failures == 1:
            log.warning(
                "sink %r failed (%s); its rows wait in %s and are tried again",
                self.spec.name,
                self.error,
                self.history,
            )
        if self._failures == BREAK_AFTER:
            log.warning(
                "sink %r failed %d times in a row (%s); it is tried about once a minute now",
                self.spec.name,
                self._failures,
                self.error,
            )
        wait = wait_after(self._failures)
        if self._closing.is_set():
            left = self._deadline - time.monotonic()
            wait = min(wait, FIRST_WAIT_S)
            if left < wait or self._last_try:
                return False
            time.sleep(wait)
        else:
            self._closing.wait(wait)
        return True


@attrs.define(eq=False)
class Delivery:
    """All followers of a run's log."""

    followers: list[Follower]

    @classmethod
    def start(
        cls,
        specs: Iterable[SinkSpec],
        run: RunInfo,
        history: Path,
        newest: int = 0,
        after: Iterable[Follower] = (),
    ) -> Delivery:
        """Start a follower for each sink; `newest` is the `seq` of the log's last row. A follower
        begins when the one of the same sink in `after` has ended.
        """
        before = {follower.spec.name: follower for follower in after}
        return cls([Follower(s, run, history, newest, before.get(s.name)) for s in specs])

    def hand_over(self, timeout: float, until: int) -> list[Follower]:
        """Let the followers deliver the rows before offset `until` and end; return them."""
        for follower in self.followers:
            follower.close(time.monotonic() + timeout, "running", until=until)
        followers, self.followers = self.followers, []
        return followers

    def wake(self, newest: int) -> None:
        """Deliver new rows, up to the one with the `seq` `newest`."""
        for follower in self.followers:
            follower.wake(newest)

    def close(
        self, timeout: float, status: str = "finished", reason: str | None = None
    ) -> Mapping[str, DeliveryReport]:
        """Let all sinks finish within `timeout` seconds together; report each, and log a warning
        for missing rows. The sinks get the run's status and the reason of a failure.
        """
        deadline = time.monotonic() + timeout
        for follower in self.followers:
            follower.close(deadline, status, reason)
        reports = {f.spec.name: f.join() for f in self.followers}
        for follower in self.followers:
            _warn_of_missing(reports[follower.spec.name], follower.run.run_dir)
        self.followers = []
        return reports


def _warn_of_missing(report: DeliveryReport, run_dir: Path) -> None:
    if report.undelivered and not history_file(run_dir).exists():
        log.warning(
            "sink %r: %d rows not delivered: %s has no log any more. If the run's directory was "
            "moved, open the run there, or: art sync NEW_DIRECTORY --sink %s",
            report.sink,
            report.undelivered,
            run_dir,
            report.sink,
        )
    elif report.undelivered:
        log.warning(
            "sink %r: %d rows not delivered (%s); they stay in the log and follow when the run is "
            "opened again, or with: art sync %s --sink %s",
            report.sink,
            report.undelivered,
            report.error,
            shlex.quote(str(run_dir)),
            report.sink,
        )
    elif report.error:
        log.warning("sink %r was not closed (%s)", report.sink, report.error)
