"""Paid calls of attempts, as receipts: stored with the attempt, and booked once in the run's log.

A receipt waits with its group. The take of the group gives it a number; so it does to receipts of
attempts that were late, stale or set aside. Rows have the highest number that they and those before
have booked.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import orjson

from art_core.base.errors import ConfigError, MetricError
from art_core.base.files import json_line
from art_core.budgets.run_budget import RunBudget
from art_core.costs.ledger import UNPRICED
from art_core.costs.pending import PendingCall
from art_core.data.account import UNOWNED, Account, PaidCall
from art_core.metrics.receipt import Receipt, receipt_of
from art_core.metrics.taxonomy import builtin_taxonomy

SCHEMA = """
create table if not exists paid (
  id integer primary key, attempt integer not null, place integer not null, grp integer,
  number integer, json blob, unique (attempt, place)
);
create index if not exists paid_of_groups on paid (grp) where json is not null;
create index if not exists paid_waiting on paid (number) where json is not null;
"""


@attrs.frozen(kw_only=True)
class Paid:
    """Calls of one kind of an attempt (see `PaidCall`). `receipt` is None if the usage of the call
    could not be read. `number` is 0 until a take gives it one. The run's budget has counted
    `covered` dollars of it.
    """

    source: str
    receipt: Receipt | None
    number: int = 0
    covered: float = 0.0
    several: bool = False

    def quote(self) -> float | None:
        """Return US dollars; None when unpriced."""
        return None if self.receipt is None else self.receipt.usd

    def book(self, owner: Any) -> None:
        """Add the cost to a builder, unless it was added before."""
        path = f"{owner.context or 'train'}/{self.source}"
        with owner.ledger.once(self.number) as is_new:
            if is_new and self.receipt is None:
                owner.ledger.add("", UNPRICED, 1.0)
            elif is_new:
                owner.ledger.add_receipt(owner.context, path, self.receipt, self.covered)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        receipt = None if self.receipt is None else self.receipt.to_dict()
        return {"source": self.source, "receipt": receipt, "covered": self.covered}


def paid_of(calls: Iterable[PaidCall], budget: RunBudget | None = None) -> tuple[Paid, ...]:
    """Return the receipts of calls; those of one kind are added up. `budget` is the run's."""
    found: dict[Any, Paid] = {}
    for number, call in enumerate(calls):
        receipt, covered = None, 0.0
        if isinstance(call, PendingCall):
            receipt, covered = call.receipt(), call.covered(budget)
        kind: Any = number if receipt is None else (call.source, receipt.kind)
        before = found.get(kind)
        if before is not None and before.receipt is not None and receipt is not None:
            receipt, covered = before.receipt.plus(receipt), before.covered + covered
        found[kind] = Paid(source=call.source, receipt=receipt, covered=covered)
    return tuple(found.values())


def paid_from(stored: Any) -> tuple[Paid, ...]:
    """Return the receipts of JSON values; ConfigError for others."""
    if not isinstance(stored, Sequence) or isinstance(stored, str):
        raise ConfigError(f"paid calls are a list of sources with receipts, not {stored!r:.80}")
    return tuple(attrs.evolve(_from_dict(each), covered=0.0) for each in stored)


def _from_dict(stored: Mapping[str, Any], number: int = 0) -> Paid:
    try:
        source, receipt = stored["source"], stored["receipt"]
        builtin_taxonomy().place(f"costs/train/{source}", "train")
        made = None if receipt is None else receipt_of({"leaf": "", **receipt})
    except (KeyError, TypeError, MetricError) as error:
        raise ConfigError(f"not a paid call: {error!r}") from error
    covered = stored.get("covered", 0.0)
    return Paid(source=source, receipt=made, number=number, covered=covered)


def account_of(paid: Iterable[Paid]) -> Account:
    """Return an account of calls, for the group whose training books them."""
    account = Account(UNOWNED)
    for each in paid:
        account.add(each)
    return account


def store(db: sqlite3.Connection, attempt: int, group: int | None, paid: Sequence[Paid]) -> None:
    """Keep the receipts of an attempt, once, for its group or for the next take."""
    db.executemany(
        "insert or ignore into paid (attempt, place, grp, json) values (?, ?, ?, ?)",
        [(attempt, place, group, json_line(each.to_dict())) for place, each in enumerate(paid)],
    )


def leave_group(db: sqlite3.Connection, group: int) -> None:
    """Have the next take number the receipts of a group, which will not be trained as it is."""
    db.execute("update paid set grp = null where grp = ? and json is not null", (group,))


def take(db: sqlite3.Connection, groups: Iterable[int] | None, after: int) -> list[Paid]:
    """Number the receipts of groups, and those of no group; of all groups for None. Return them,
    and those that were numbered before, in their order.
    """
    if groups is None:
        db.execute("update paid set grp = null where json is not null and number is null")
    waiting = (
        "select id from paid where json is not null and number is null and grp is ? order by id"
    )
    for group in (None, *(groups or ())):
        for (each,) in db.execute(waiting, (group,)).fetchall():
            db.execute("update paid set number = ? where id = ?", (_next_number(db), each))
    numbered = db.execute(
        "select number, json from paid where json is not null and number > ? order by number",
        (after,),
    )
    return [_from_dict(orjson.loads(json), number) for number, json in numbered.fetchall()]


def _next_number(db: sqlite3.Connection) -> int:
    made = db.execute(
        "insert into facts values ('paid', 1)"
        " on conflict (name) do update set value = value + 1 returning value"
    )
    return int(made.fetchone()[0])


def forget(db: sqlite3.Connection, logged: int) -> None:
    """Forget receipts up to a number, which the log has. An attempt that had some keeps a mark, so
    that the same submission adds nothing. Later numbers are higher.
    """
    db.execute("update paid set json = null where number <= ? and json is not null", (logged,))
    db.execute(
        "insert into facts values ('paid', ?)"
        " on conflict (name) do update set value = max(value, excluded.value)",
        (logged,),
    )
