"""The account of a budget: reservations and what they became, in a file that processes share."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakSet

import attrs
from orjson import OPT_APPEND_NEWLINE, dumps

from art_core.base.errors import BudgetError
from art_core.base.files import close_in_children, close_lock
from art_core.budgets.budget import Budget
from art_core.budgets.estimate import Costs
from art_core.budgets.tally import OpenReservation, Tally, entries_of

log = logging.getLogger("art_core")

_TOLERANCE = 1e-9
"""Sums of floats differ by less: the last dollar can be spent."""


@attrs.frozen
class Reservation:
    """Dollars that are set aside, by the number of their line."""

    id: str
    kind: str
    usd: float


@attrs.define(eq=False)
class BudgetAccount:
    """What a budget has spent and reserved.

    The file has one line per change, each appended under a lock with one write(2), so that the
    death of a process at any point leaves the account right: what it had reserved stays reserved.
    Without a `path` the account lives in memory. `scope` is that of its errors.
    """

    terms: Budget
    path: Path | None = None
    scope: Any = "calls"
    tally: Tally = attrs.field(factory=Tally, init=False)
    _fd: int = attrs.field(default=-1, init=False)
    _read: int = attrs.field(default=0, init=False)
    _session: str = attrs.field(factory=lambda: uuid.uuid4().hex[:8], init=False)
    _count: int = attrs.field(default=0, init=False)
    _lock: Any = attrs.field(factory=threading.Lock, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        _accounts.add(self)

    def reserve(
        self, kind: str, usd: float, *, within: Reservation | None = None, **about: Any
    ) -> Reservation:
        """Set dollars aside, out of another reservation as far as it has some left.

        BudgetError, with nothing changed, if they would exceed the limit. `about` are the `run`,
        its `attempt` and the `seq` of its last row.
        """
        with self._entered():
            around = None if within is None else self.tally.open.get(within.id)
            self._check(kind, usd, around)
            self._count += 1
            made = Reservation(f"{self._session}-{self._count}", kind, usd)
            entry = {"reserve": made.id, "kind": kind, "usd": usd, **about}
            self._append(entry if around is None else {**entry, "in": within.id})  # type: ignore[union-attr]
        return made

    def settle(self, reservation: Reservation, usd: float) -> None:
        """Replace a reservation by what was spent. A second time changes nothing.

        A disk that does not take it leaves the reservation, which counts as spent: the call is
        paid, and its result must not be lost.
        """
        try:
            self._spend({"settle": reservation.id, "usd": usd}, reservation.id)
        except OSError as error:
            log.warning("%s: $%g stay reserved for %s", error, reservation.usd, reservation.kind)

    def note_row(
        self, run: str, seq: int, logged: float, covered: float, settled: list[str]
    ) -> None:
        """Take over what a run's log shows up to a row, in place of reservations."""
        entry = {"run": run, "seq": seq, "logged": logged, "covered": covered, "settles": settled}
        try:
            self._spend(entry)
        except (OSError, BudgetError) as error:
            log.warning("%s: row %d of %s is added when the run is opened again", error, seq, run)

    def costs_of(self, kind: str) -> Costs:
        """Return the newest costs of a kind."""
        if self.path is not None and self._fd < 0:
            self.refresh()
        return self.tally.costs.get(kind) or Costs()

    def refresh(self) -> Tally:
        """Return what the account adds up to, with what other processes added."""
        with self._entered():
            return self.tally

    @property
    def spent(self) -> float:
        """Dollars that were spent, as far as this process has read."""
        return self.tally.spent

    @property
    def left(self) -> float:
        """Dollars that are neither spent nor reserved."""
        return self.terms.usd - self.tally.spent - self.tally.reserved

    def close(self) -> None:
        """Close the file; a later reservation opens it again."""
        with self._lock:
            self._forget()

    def _check(self, kind: str, usd: float, around: OpenReservation | None) -> None:
        needed = usd if around is None else max(0.0, usd - around.rest)
        if needed > self.left + _TOLERANCE:
            raise self.refused(
                f"{kind} needs up to ${usd:.4g}, and ${max(0.0, self.left):.4g} of the budget of "
                f"${self.terms.usd:g} are left: ${self.spent:.4g} spent, "
                f"${self.tally.reserved:.4g} reserved",
                "A higher limit goes on from here.",
            )
        most = self.terms.per_step
        of_step = around is not None and around.kind == "step"
        if most is not None and of_step and around.drawn + usd > most + _TOLERANCE:  # type: ignore[union-attr]
            raise self.refused(
                f"{kind} needs up to ${usd:.4g}, and this step has paid or reserved "
                f"${around.drawn:.4g} of its per_step=${most:g}",  # type: ignore[union-attr]
                "Raise per_step, or make fewer attempts in a step.",
            )

    def refused(self, problem: str, remedy: str) -> BudgetError:
        """Return an error of this account."""
        error = BudgetError(problem, remedy)
        error.scope = self.scope
        return error

    def _spend(self, entry: Mapping[str, Any], reservation: str | None = None) -> None:
        """Append a line about what was spent, of a reservation only if it is open.

        Warn once that most is spent; the file remembers it for other processes.
        """
        usd = self.terms.usd
        with self._entered():
            if reservation is None or reservation in self.tally.open:
                self._append(entry)
            passes = self.tally.warned != usd and self.spent >= self.terms.warn * usd
            if passes:
                self._append({"warned": usd})
        if passes:
            log.warning("$%.4g of the budget of $%g are spent", self.spent, usd)

    @contextmanager
    def _entered(self) -> Iterator[None]:
        """Hold the file for this thread of this process, with all its lines read."""
        with self._lock:
            if self.path is None:
                yield
                return
            if self._fd < 0:
                self._open(self.path)
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            try:
                self._catch_up()
                yield
            except (BudgetError, OSError):
                raise
            except BaseException:
                self._forget()  # Ctrl-C may have come between a line and its sum
                raise
            finally:
                if self._fd >= 0:
                    fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _open(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        close_in_children(self._fd)
        self._read, self.tally = 0, Tally()
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        self._catch_up()
        if self.tally.limit != self.terms.usd:
            self._append({"limit": self.terms.usd})

    def _catch_up(self) -> None:
        """Add the lines of other processes; drop a line that one was killed in."""
        found = os.fstat(self._fd)
        if found.st_nlink == 0 or found.st_size < self._read:
            raise self.refused(
                f"the budget's file {self.path} was deleted or cut while in use",
                "Start again: the run's log has what it spent.",
            )
        if found.st_size == self._read:
            return
        data = os.pread(self._fd, found.st_size - self._read, self._read)
        whole = data.rfind(b"\n") + 1
        for entry in entries_of(data[:whole], str(self.path)):
            self.tally.apply(entry)
        self._read += whole
        if whole < len(data):
            os.ftruncate(self._fd, self._read)
            log.warning("%s ended in a torn line of %d bytes", self.path, len(data) - whole)

    def _append(self, entry: Mapping[str, Any]) -> None:
        if self.path is not None:
            line = dumps(entry, option=OPT_APPEND_NEWLINE)
            written = os.write(self._fd, line)
            if written != len(line):
                os.ftruncate(self._fd, self._read)
                raise OSError(f"{self.path}: the disk took {written} of {len(line)} bytes")
            self._read += written
        self.tally.apply(entry)

    def _forget(self) -> None:
        if self._fd >= 0:
            close_lock(self._fd)
            self._fd = -1

    def begin_in_child(self) -> None:
        """Open the file anew in a forked process, which has numbers of its own."""
        self._lock, self._fd = threading.Lock(), -1
        self._session = uuid.uuid4().hex[:8]


_accounts: WeakSet[BudgetAccount] = WeakSet()


def _begin_in_child() -> None:
    for account in list(_accounts):
        account.begin_in_child()


os.register_at_fork(after_in_child=_begin_in_child)
