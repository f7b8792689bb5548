"""Whole groups in the queue's database: taken by position, committed up to a cursor, or put back.

Each function is an operation on the database, or a part of one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

import attrs
import orjson

from art_core.base.errors import RolloutFailure
from art_core.data.outcome import split_by_player
from art_core.data.trajectory import TrajectoryGroup
from art_core.queue import paid
from art_core.queue.payload import from_json
from art_core.queue.slots import add_to_fact, end_leases, fact, set_fact
from art_core.queue.values import Counts, Scenario, SetAside


@attrs.frozen
class Ready:
    """A whole group: its position, the step of its oldest attempt, and whether it is dropped."""

    group: int
    position: int
    step: int
    passed: bool


def begin(db: sqlite3.Connection, cursor: int, logged: int, version: str) -> None:
    """Begin at a cursor of the log: groups up to it are trained, and those that were trained after
    it are put back, since the log went back to an older step. Its rows have booked what was paid up
    to the number `logged`.
    """
    commit(db, cursor)
    paid.forget(db, logged)
    undone = db.execute(
        "select id from groups where position > ? and state in ('trained', 'dropped')", (cursor,)
    ).fetchall()
    put_back(db, [group for (group,) in undone])
    db.execute("update groups set passed = 0 where passed = 1 and state = 'ready'")
    set_fact(db, "cursor", cursor)
    set_fact(db, "positions", max(cursor, fact(db, "positions", 0)))  # the file may be a new one
    if version:
        set_fact(db, "version", version)


def commit(db: sqlite3.Connection, cursor: int) -> None:
    """Count the groups up to a cursor as trained, and delete their attempts."""
    consumed = db.execute(
        "update groups set state = case passed when 1 then 'dropped' else 'trained' end"
        " where state = 'ready' and position <= ? returning id",
        (cursor,),
    ).fetchall()
    _delete_outcomes(db, [group for (group,) in consumed])
    set_fact(db, "cursor", max(cursor, fact(db, "cursor", 0)))


def _delete_outcomes(db: sqlite3.Connection, groups: Iterable[int]) -> None:
    db.executemany(
        "delete from outcomes where attempt in (select attempt from slots where grp = ?)",
        [(group,) for group in groups],
    )


def put_back(db: sqlite3.Connection, groups: Sequence[int]) -> None:
    """Begin groups again, with none of their attempts."""
    _delete_outcomes(db, groups)
    for group in groups:
        paid.leave_group(db, group)
        db.execute(
            "update groups set state = 'open', begun = 0, round = round + 1, position = null,"
            " step = null, passed = 0 where id = ?",
            (group,),
        )
        ended = "update slots set state = 'new', failures = 0, expired = 0, attempt = null"
        for (slot,) in db.execute(f"{ended} where grp = ? returning slot", (group,)).fetchall():
            end_leases(db, group, slot)


def ready_after(db: sqlite3.Connection, position: int) -> list[Ready]:
    """Return whole groups in the order of their positions."""
    found = db.execute(
        "select id, position, step, passed from groups where state = 'ready' and position > ?"
        " order by position",
        (position,),
    )
    return [Ready(group, place, step, bool(passed)) for group, place, step, passed in found]


def put_back_stale(db: sqlite3.Connection, groups: Sequence[int]) -> None:
    """Put groups back that were too old, and count them."""
    put_back(db, groups)
    add_to_fact(db, "stale", len(groups))


def pass_over(db: sqlite3.Connection, groups: Sequence[int], stale: int) -> None:
    """Have groups dropped when the cursor has passed them, `stale` ones among them. They do not
    count as begun any more.
    """
    db.executemany("update groups set passed = 1 where id = ?", [(group,) for group in groups])
    for group in groups:
        paid.leave_group(db, group)
    add_to_fact(db, "stale", stale)


def is_finished(db: sqlite3.Connection, position: int) -> bool:
    """Return whether no group after a position will be whole."""
    if not fact(db, "last", 0):
        return False
    rest = db.execute(
        "select 1 from groups where state = 'open' or (state = 'ready' and position > ?) limit 1",
        (position,),
    )
    return rest.fetchone() is None


def load(db: sqlite3.Connection, group: int) -> list[TrajectoryGroup]:
    """Return a whole group, or one for each of its players."""
    scenario = _scenario(db, group)
    metadata = {
        "scenario_id": scenario.id,
        "epoch": scenario.epoch,
        "index": scenario.index,
        "queue_group": group,
    }
    stored = db.execute(
        "select json from slots join outcomes using (attempt) where grp = ? order by slot", (group,)
    )
    results = [from_json(row[0]) for row in stored]
    return split_by_player(TrajectoryGroup(metadata=metadata), results)


def _scenario(db: sqlite3.Connection, group: int) -> Scenario:
    epoch, place, value, name = db.execute(
        "select epoch, place, scenario, name from groups where id = ?", (group,)
    ).fetchone()
    return Scenario(epoch=epoch, index=place, value=orjson.loads(value), id=name)


def set_aside(db: sqlite3.Connection) -> list[SetAside]:
    """Return the scenarios whose attempts all failed."""
    groups = db.execute("select id from groups where state = 'aside' order by id").fetchall()
    return [
        SetAside(scenario=_scenario(db, group), failures=_failures(db, group))
        for (group,) in groups
    ]


def _failures(db: sqlite3.Connection, group: int) -> tuple[RolloutFailure, ...]:
    return tuple(failure for each in load(db, group) for failure in each.failures)


def counts(db: sqlite3.Connection) -> Counts:
    """Count attempts and groups."""
    of_groups = dict(db.execute("select state, count(*) from groups group by state").fetchall())
    of_slots = dict(
        db.execute(
            "select state, count(*) from slots where state in ('new', 'free', 'leased')"
            " group by state"
        ).fetchall()
    )
    done = db.execute(
        "select count(*) from groups cross join slots on grp = id"  # in this order
        " where begun = 1 and passed = 0 and groups.state = 'open'"
        " and slots.state in ('done', 'failed')"
    ).fetchone()[0]
    return Counts(
        waiting=of_slots.get("new", 0) + of_slots.get("free", 0),
        leased=of_slots.get("leased", 0),
        done=done,
        ready=of_groups.get("ready", 0),
        trained=of_groups.get("trained", 0),
        dropped=of_groups.get("dropped", 0),
        stale=fact(db, "stale", 0),
        set_aside=of_groups.get("aside", 0),
        expired=fact(db, "expired", 0),
        filled=sum(of_groups.values()),
    )
