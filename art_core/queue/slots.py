"""The slots of groups in the queue's database: filled in, leased, and ended by one attempt each.

A group is `open` until each of its slots is `done` or `failed`. Then it is `ready` and has a
position, or `aside` if all have failed; when its step is trained, it is `trained` or `dropped`. Its
`round` counts how often it was put back. A slot is `new` until its group is begun, later it is
`free` or `leased`. An attempt is `open` (leased), `over` (expired, given back or overtaken),
`failed`, `late` or `accepted`.

Each function is an operation on the database, or a part of one.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

import attrs
import orjson

from art_core.base.errors import ConfigError, RolloutFailure
from art_core.data.outcome import Outcomes
from art_core.queue import paid
from art_core.queue.paid import Paid
from art_core.queue.payload import failures_of, step_of, to_json
from art_core.queue.values import Lease, Reply, Scenario

MAX_EXPIRED = 20
"""Leases of a slot that expire before it fails: the scenario may be what kills its workers."""

SCHEMA = """
create table if not exists facts (name text primary key, value) without rowid;
create table if not exists groups (
  id integer primary key, epoch integer not null, place integer not null,
  scenario blob not null, name text not null, round integer not null default 0,
  state text not null default 'open', begun integer not null default 0,
  position integer, step integer, passed integer not null default 0,
  unique (epoch, place)
);
create table if not exists slots (
  grp integer not null, slot integer not null, state text not null default 'new',
  leases integer not null default 0, failures integer not null default 0,
  expired integer not null default 0, attempt integer,
  primary key (grp, slot)
) without rowid;
create table if not exists attempts (
  number integer primary key, key text not null unique, grp integer not null,
  round integer not null, slot integer not null, worker text not null, step integer not null,
  renewed integer not null default 0, state text not null default 'open'
);
create table if not exists outcomes (attempt integer primary key, json blob not null);
create index if not exists slots_by_state on slots (state, grp, slot);
create index if not exists groups_begun on groups (begun, passed, state);
create index if not exists groups_by_state on groups (state, position);
create index if not exists attempts_of_a_slot on attempts (grp, slot) where state = 'open';
"""
SCHEMA += paid.SCHEMA


def fact(db: sqlite3.Connection, name: str, default: Any) -> Any:
    """Return a fact about the queue."""
    found = db.execute("select value from facts where name = ?", (name,)).fetchone()
    return default if found is None else found[0]


def set_fact(db: sqlite3.Connection, name: str, value: Any) -> None:
    """Keep a fact about the queue."""
    db.execute("insert or replace into facts values (?, ?)", (name, value))


def add_to_fact(db: sqlite3.Connection, name: str, more: int) -> int:
    """Add to a number and return the sum."""
    total = int(fact(db, name, 0)) + more
    set_fact(db, name, total)
    return total


def fill(db: sqlite3.Connection, scenarios: Iterable[Scenario], *, size: int, last: bool) -> int:
    """Add the scenarios that are not there; return their number. ConfigError for one that is there
    with another value.
    """
    added = 0
    for scenario in scenarios:
        value = orjson.dumps(scenario.value, option=orjson.OPT_SORT_KEYS)
        where = scenario.epoch, scenario.index
        found = db.execute(
            "select scenario from groups where epoch = ? and place = ?", where
        ).fetchone()
        if found is None:
            group = db.execute(
                "insert into groups (epoch, place, scenario, name) values (?, ?, ?, ?)",
                (*where, value, scenario.id),
            ).lastrowid
            slots = [(group, slot) for slot in range(size)]
            db.executemany("insert into slots (grp, slot) values (?, ?)", slots)
            added += 1
        elif found[0] != value:
            raise ConfigError(
                f"the queue has another scenario {scenario.index} of epoch {scenario.epoch}: "
                f"{found[0].decode()[:80]}, not {value.decode()[:80]}",
                "Give the scenarios that the run was begun with, or begin a run of another name.",
            )
    set_fact(db, "last", int(last))
    return added


def check_version(db: sqlite3.Connection, version: str) -> None:
    """Keep the version of the rollout, or compare it; ConfigError for another one."""
    known = fact(db, "version", "")
    if version and not known:
        set_fact(db, "version", version)
    elif version and version != known:
        raise ConfigError(
            f"this worker has version {version} of the rollout, and the run has {known}",
            "Start the worker with the same file of the rollout as the trainer.",
        )


def lease(
    db: sqlite3.Connection, worker: str, n: int, ahead: int | None, seconds: float
) -> list[tuple[int, Lease]]:
    """Lease up to `n` slots, each with the number of its attempt: those of groups that are begun
    first, then of new groups while fewer than `ahead` are begun.
    """
    step = fact(db, "step", 0)
    free = _slots_in(db, "free", n)
    leased = [_leased(db, *place, worker, step, seconds) for place in free]
    while len(leased) < n and (first := _slots_in(db, "new", 1)) and _has_room(db, ahead):
        group = first[0][0]
        db.execute("update groups set begun = 1 where id = ?", (group,))
        db.execute("update slots set state = 'free' where grp = ?", (group,))
        begun = _slots_in(db, "free", n - len(leased))
        leased += [_leased(db, *place, worker, step, seconds) for place in begun]
    return leased


def _slots_in(db: sqlite3.Connection, state: str, n: int) -> list[tuple[int, int]]:
    ordered = "select grp, slot from slots where state = ? order by grp, slot limit ?"
    return db.execute(ordered, (state, n)).fetchall()


def _has_room(db: sqlite3.Connection, ahead: int | None) -> bool:
    return ahead is None or begun(db) < ahead


def begun(db: sqlite3.Connection) -> int:
    """Return the number of groups that are begun and not consumed."""
    counted = db.execute(
        "select count(*) from groups where begun = 1 and passed = 0 and state in ('open', 'ready')"
    )
    return int(counted.fetchone()[0])


def _leased(
    db: sqlite3.Connection, group: int, slot: int, worker: str, step: int, seconds: float
) -> tuple[int, Lease]:
    turn, epoch, place, value, name = db.execute(
        "select round, epoch, place, scenario, name from groups where id = ?", (group,)
    ).fetchone()
    key = f"{group}-{slot}-{secrets.token_urlsafe(18)}"
    number = db.execute(
        "insert into attempts (key, grp, round, slot, worker, step) values (?, ?, ?, ?, ?, ?)",
        (key, group, turn, slot, worker, step),
    ).lastrowid
    assert number is not None
    leases = db.execute(
        "update slots set state = 'leased', leases = leases + 1 where grp = ? and slot = ?"
        " returning leases",
        (group, slot),
    ).fetchone()[0]
    scenario = Scenario(epoch=epoch, index=place, value=orjson.loads(value), id=name)
    made = Lease(
        key=key,
        group=group,
        slot=slot,
        attempt=leases,
        scenario=scenario,
        seconds=seconds,
        step=step,
    )
    return number, made


@attrs.frozen(kw_only=True)
class Submission:
    """An attempt that was submitted: its outcomes, their JSON, which is made only once, and the
    receipts of its paid calls.
    """

    key: str
    outcomes: Outcomes
    step: int | None
    json: bytes
    paid: Sequence[Paid]

    @classmethod
    def of(
        cls, key: str, outcomes: Outcomes, step: int | None, paid: Sequence[Paid] = ()
    ) -> Submission:
        """Return the submission of outcomes."""
        found = step_of(outcomes)
        made_at = step if found is None else found
        json = to_json(outcomes)
        return cls(key=key, outcomes=outcomes, step=made_at, json=json, paid=paid)


def submit(db: sqlite3.Connection, submission: Submission, tries: int) -> tuple[Reply, bool]:
    """Store an attempt if its slot has none; a failure frees the slot until it has failed `tries`
    times. Return the reply, and whether the group has ended. ConfigError for an unknown key.
    """
    found = db.execute(
        "select number, grp, round, slot, state, step from attempts where key = ?",
        (submission.key,),
    ).fetchone()
    if found is None:
        raise ConfigError(
            f"no lease has the key {submission.key[:80]!r}", "Submit with the key of a lease."
        )
    number, group, turn, slot, state, leased_at = found
    if state in ("accepted", "failed"):
        return "duplicate", False
    if not _is_free(db, group, turn, slot):
        db.execute("update attempts set state = 'late' where number = ?", (number,))
        paid.store(db, number, None, submission.paid)
        return "late", False
    paid.store(db, number, group, submission.paid)
    if failures_of(submission.outcomes):
        db.execute("update attempts set state = 'failed' where number = ?", (number,))
        return "accepted", _fail(db, group, slot, number, submission.json, tries)
    db.execute("insert into outcomes values (?, ?)", (number, submission.json))
    db.execute("update attempts set state = 'accepted' where number = ?", (number,))
    _end_slot(db, group, slot, "done", number)
    step = leased_at if submission.step is None else submission.step
    db.execute(
        "update groups set step = min(coalesce(step, ?), ?) where id = ?", (step, step, group)
    )
    return "accepted", _end_group(db, group)


def _is_free(db: sqlite3.Connection, group: int, turn: int, slot: int) -> bool:
    return (
        db.execute(
            "select 1 from groups join slots on grp = id where id = ? and round = ? and slot = ?"
            " and groups.state = 'open' and slots.state in ('free', 'leased')",
            (group, turn, slot),
        ).fetchone()
        is not None
    )


def _fail(
    db: sqlite3.Connection, group: int, slot: int, number: int, failure: bytes, tries: int
) -> bool:
    failures = db.execute(
        "update slots set failures = failures + 1 where grp = ? and slot = ? returning failures",
        (group, slot),
    ).fetchone()[0]
    if failures >= tries:
        return _give_up(db, group, slot, number, failure)
    _free(db, group, slot)
    return False


def _give_up(db: sqlite3.Connection, group: int, slot: int, number: int, failure: bytes) -> bool:
    db.execute("insert into outcomes values (?, ?)", (number, failure))
    _end_slot(db, group, slot, "failed", number)
    return _end_group(db, group)


def _free(db: sqlite3.Connection, group: int, slot: int) -> None:
    """Free a slot, unless another lease of it is open."""
    db.execute(
        "update slots set state = 'free' where grp = ? and slot = ? and not exists"
        " (select 1 from attempts where grp = ? and slot = ? and state = 'open')",
        (group, slot, group, slot),
    )


def _end_slot(db: sqlite3.Connection, group: int, slot: int, state: str, number: int) -> None:
    db.execute(
        "update slots set state = ?, attempt = ? where grp = ? and slot = ?",
        (state, number, group, slot),
    )
    end_leases(db, group, slot)


def end_leases(db: sqlite3.Connection, group: int, slot: int) -> None:
    """End the leases of a slot that are open."""
    db.execute(
        "update attempts set state = 'over' where grp = ? and slot = ? and state = 'open'",
        (group, slot),
    )


def _end_group(db: sqlite3.Connection, group: int) -> bool:
    """Make a group ready if all its slots are ended, or set it aside if all have failed."""
    rest, done = db.execute(
        "select sum(state not in ('done', 'failed')), sum(state = 'done') from slots where grp = ?",
        (group,),
    ).fetchone()
    if rest:
        return False
    if done:
        position = add_to_fact(db, "positions", 1)
        set_state = "update groups set state = 'ready', position = ? where id = ?"
        db.execute(set_state, (position, group))
    else:
        db.execute("update groups set state = 'aside' where id = ?", (group,))
        paid.leave_group(db, group)
    return True


def renew(db: sqlite3.Connection, key: str) -> tuple[int, int] | None:
    """Count a renewal; return the attempt's number and its renewals, None if its lease is over."""
    found = db.execute(
        "update attempts set renewed = renewed + 1 where key = ? and state = 'open'"
        " returning number, renewed",
        (key,),
    ).fetchone()
    return found and (found[0], found[1])


def give_back(db: sqlite3.Connection, key: str, calls: Sequence[Paid]) -> bool:
    """End a lease without an attempt; return False if it is over. What it paid is kept."""
    if calls:
        for (number,) in db.execute("select number from attempts where key = ?", (key,)):
            paid.store(db, number, None, calls)
    found = db.execute(
        "update attempts set state = 'over' where key = ? and state = 'open' returning grp, slot",
        (key,),
    ).fetchone()
    if found is None:
        return False
    _free(db, *found)
    return True


def expire(db: sqlite3.Connection, leases: Sequence[tuple[int, int]], seconds: float) -> int:
    """End leases whose term is over, by number and renewals; return how many were open."""
    expired = 0
    for number, renewed in leases:
        found = db.execute(
            "update attempts set state = 'over' where number = ? and renewed = ?"
            " and state = 'open' returning grp, slot",
            (number, renewed),
        ).fetchone()
        if found is not None:
            expired += 1
            group, slot = found
            _expire(db, group, slot, number, seconds)
    if expired:
        add_to_fact(db, "expired", expired)
    return expired


def _expire(db: sqlite3.Connection, group: int, slot: int, number: int, seconds: float) -> None:
    _free(db, group, slot)
    times = db.execute(
        "update slots set expired = expired + 1 where grp = ? and slot = ? and state = 'free'"
        " returning expired",
        (group, slot),
    ).fetchone()
    if times is not None and times[0] >= MAX_EXPIRED:
        message = f"{times[0]} workers did not end the attempt within {seconds:g} s"
        failure = RolloutFailure(reason="timeout", type="TimeoutError", message=message)
        _give_up(db, group, slot, number, to_json({None: failure}))


def open_leases(db: sqlite3.Connection) -> list[tuple[int, int]]:
    """Return the number and the renewals of each open lease."""
    return db.execute("select number, renewed from attempts where state = 'open'").fetchall()


def lease_state(db: sqlite3.Connection, key: str) -> str | None:
    """Return the state of an attempt."""
    found = db.execute("select state from attempts where key = ?", (key,)).fetchone()
    return found and str(found[0])
