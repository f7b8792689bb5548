"""Accounts keep the paid calls of rollouts until it is known which run pays for them.

Each gathered group has an account. The first model that logs or trains the group, or a trajectory
of it, books the calls in the account, once. The calls of a group that no model logs move up to the
account of its gathering, and from there to `UNOWNED`.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import attrs

from art_core.base.spending import active_spending, note_spent


class PaidCall(Protocol):
    """A call whose cost is not in a run yet."""

    @property
    def source(self) -> str:
        """Return the source of the cost, a path below `costs/`."""

    @property
    def several(self) -> bool:
        """Return whether several models were open when the call was made."""

    def quote(self) -> float | None:
        """Return US dollars; None when unpriced."""

    def book(self, owner: Any) -> None:
        """Add its cost to a model's metrics builder."""


active_account: ContextVar[Account | None] = ContextVar("art_active_account", default=None)
_lock = threading.RLock()
handed_over: deque[tuple[Any, list[PaidCall]]] = deque()
"""Calls of deleted accounts, with the owner of the account above."""


@attrs.define(eq=False)
class Account:
    """Paid calls of one group, or of one gathering. After `settle` they go to its owner at once.

    `above` is the account that gets the calls when this one is deleted. `usd` are the dollars of
    those that `settle` booked.
    """

    above: Account | None = None
    gathering: bool = False
    owner: Any = None
    usd: float = 0.0
    calls: deque[PaidCall] = attrs.field(factory=deque, repr=False)

    def __attrs_post_init__(self) -> None:
        _accounts.add(self)
        if self.above is not None:
            weakref.finalize(self, _hand_over, self.above, self.calls)

    def add(self, call: PaidCall) -> None:
        """Keep a call, or book it if the owner is known."""
        with _lock:
            owner = self.owner
            if owner is None:
                self.calls.append(call)
        if owner is not None:
            call.book(owner)
        elif active_spending.get() is not None:
            note_spent(call.quote())

    def settle(self, owner: Any) -> None:
        """Book the calls, and those of dropped groups of the same gathering, for an owner. An
        account has one owner: later ones get nothing.
        """
        with _lock:
            self.owner = self.owner or owner
        calls = self.take()
        self.usd += sum(call.quote() or 0.0 for call in calls)
        book_all(self.owner, calls)
        if self.above is not None and self.above.gathering:
            self.above.settle(owner)

    def take(self) -> list[PaidCall]:
        """Remove and return the calls."""
        with _lock:
            return _emptied(self.calls)

    def absorb(self, other: Account) -> None:
        """Move the calls of another account to this one."""
        if other is not self:
            for call in other.take():
                self.add(call)

    @property
    def waiting(self) -> bool:
        """True when it holds calls."""
        return bool(self.calls)


_accounts: weakref.WeakSet[Account] = weakref.WeakSet()
UNOWNED = Account()
"""Calls outside of any gathering, and those of gatherings that no model logged."""
_checks: list[Callable[[], None]] = []


def open_account() -> Account:
    """Make an account below the active one."""
    return Account(active_account.get() or UNOWNED)


@contextmanager
def charging(account: Account) -> Iterator[None]:
    """Keep in an account the paid calls of the block and of tasks and threads that it starts."""
    token = active_account.set(account)
    try:
        yield
    finally:
        active_account.reset(token)


def before_gatherings(check: Callable[[], None]) -> None:
    """Call a function whenever a gathering begins."""
    _checks.append(check)


def begin_gathering() -> Account:
    """Return the account of a gathering that begins."""
    for check in _checks:
        check()
    return Account(active_account.get() or UNOWNED, gathering=True)


def book_all(owner: Any, calls: Iterable[PaidCall]) -> None:
    """Book calls for an owner."""
    for call in calls:
        call.book(owner)


def flush() -> None:
    """Book the calls of deleted accounts for the owners of the accounts above them."""
    while handed_over:
        book_all(*handed_over.popleft())


def unsettled() -> list[Account]:
    """Return the accounts that hold calls, `UNOWNED` among them."""
    return [account for account in list(_accounts) if account.waiting]


def _emptied(calls: deque[PaidCall]) -> list[PaidCall]:
    # One by one: garbage collection may add calls of an account below at any moment.
    taken = []
    while calls:
        taken.append(calls.popleft())
    return taken


def _hand_over(above: Account, calls: deque[PaidCall]) -> None:
    """Move the calls of a deleted account up. Garbage collection may run this anywhere, so nothing
    is booked here.
    """
    with _lock:
        left = _emptied(calls)
        if above.owner is None:
            above.calls.extend(left)
        elif left:
            handed_over.append((above.owner, left))


def drop_calls() -> None:
    """Drop all calls in a forked process: those until now are the parent's to book."""
    _lock.release()
    handed_over.clear()
    for account in unsettled():
        account.calls.clear()


os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=drop_calls)
