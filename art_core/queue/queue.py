"""AttemptQueue: the attempts of a run, on disk. Workers lease and submit, the trainer takes groups.

The log's rows have the cursor up to which groups are trained, so a kill between a step and its row
trains no group twice and loses none. Terms of leases are in memory, by the monotonic clock of each
process; after a restart each open lease has a whole new one.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar

import attrs

from art_core.base.errors import ConfigError, RolloutFailure
from art_core.base.numbers import count_of, seconds_of
from art_core.costs.builder import MetricsBuilder
from art_core.data.outcome import Outcomes
from art_core.data.trajectory import Trajectory, TrajectoryGroup
from art_core.log.rows import cursor_at, paid_at
from art_core.log.rundir import history_file
from art_core.queue import paid as receipts
from art_core.queue import ready, slots
from art_core.queue.database import Database
from art_core.queue.paid import Paid
from art_core.queue.payload import failures_of, outcomes_of
from art_core.queue.ready import Ready
from art_core.queue.slots import Submission
from art_core.queue.values import Counts, Lease, Leased, Reply, Scenario, SetAside, TakenBatch
from art_core.queue.waiting import Changes, Terms, within

T = TypeVar("T")
LEASE_S, TRIES = 300.0, 3
POLL_S = 1.0
"""How often those that wait look for expired leases, and for changes of other processes."""
Keep = Callable[[TrajectoryGroup], bool]


@attrs.define(kw_only=True, eq=False)
class _Picking:
    """The groups that a take has chosen until now, and those that it has passed over."""

    maximum: int
    step: int
    max_steps_off_policy: int | None
    drops_stale: bool
    keep: Keep
    position: int = 0
    stale: int = 0
    dropped: int = 0
    chosen: list[Ready] = attrs.field(factory=list)
    loaded: dict[int, list[TrajectoryGroup]] = attrs.field(factory=dict)

    def is_stale(self, each: Ready) -> bool:
        """Return whether a group's oldest attempt is too old."""
        limit = self.max_steps_off_policy
        return limit is not None and self.step - each.step > limit

    def batch(self, cursor: int, paid: Sequence[Paid] = (), *, finished: bool) -> TakenBatch:
        """Return what was chosen."""
        groups = tuple(group for each in self.chosen for group in self.loaded[each.group])
        return TakenBatch(
            groups=groups,
            cursor=cursor,
            stale=self.stale,
            dropped=self.dropped,
            off_policy=tuple(self.step - each.step for each in self.chosen),
            paid=tuple(paid),
            finished=finished,
        )


def _at_least_one(name: str, value: int) -> int:
    if count_of(name, value) < 1:
        raise ConfigError(f"{name} must be at least 1, got {value}")
    return value


def _begun_at(db: sqlite3.Connection) -> tuple[int, int]:
    """Return the committed cursor, and the trainer's step."""
    return slots.fact(db, "cursor", 0), slots.fact(db, "step", 0)


class AttemptQueue:
    """The queue of a run's attempts, in `<run_dir>/queue/`. Safe under threads and event loops;
    other processes of the machine may have it open too. One consumer takes groups.

    `step` is the newest step that was given to `take`. `max_groups_ahead` may be changed.
    """

    def __init__(
        self,
        database: Database,
        *,
        lease_s: float = LEASE_S,
        tries: int = TRIES,
        max_groups_ahead: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_groups_ahead = max_groups_ahead
        self._db, self._tries, self._clock = database, tries, clock
        self._terms = Terms(lease_s, clock)
        self._freed, self._whole = Changes(), Changes()
        self._position, self.step = database.read(_begun_at)
        self._next_look, self._paid = clock(), 0
        self._leases_ended = False

    @classmethod
    def open(
        cls,
        run_dir: Path,
        *,
        step: int | None = None,
        version: str = "",
        lease_s: float = LEASE_S,
        tries: int = TRIES,
        max_groups_ahead: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> Self:
        """Open or create the queue of a run.

        `step` is the one that the trained model is at: groups up to the cursor of the last row at
        or before it are trained, and groups that were trained after it are put back. Without a
        step, which is for a server beside the trainer, nothing changes. `version` is that of the
        rollout (`version_of`), which workers must have too.

        A lease ends after `lease_s` seconds without a renewal. An attempt that fails is made again
        until it has failed `tries` times; a scenario whose attempts all fail is set aside. At most
        `max_groups_ahead` groups are begun and not committed. Raises HistoryError if the directory
        can't be written, ConfigError for an option that does not fit.
        """
        lease_s, tries = seconds_of("lease_s", lease_s), _at_least_one("tries", tries)
        if max_groups_ahead is not None:
            _at_least_one("max_groups_ahead", max_groups_ahead)
        database = Database(run_dir / "queue" / "queue.sqlite", slots.SCHEMA)
        try:
            if step is not None:
                log = history_file(run_dir)
                begun = partial(ready.begin, cursor=cursor_at(log, step), logged=paid_at(log))
                database.write(partial(begun, version=version)).result()
            return cls(
                database,
                lease_s=lease_s,
                tries=tries,
                max_groups_ahead=max_groups_ahead,
                clock=clock,
            )
        except BaseException:
            database.close()
            raise

    async def fill(self, scenarios: Iterable[Scenario], *, size: int, last: bool = False) -> int:
        """Add scenarios, each with `size` attempts to make; return how many were not there before.

        `last` means that no more will come. ConfigError for one that is there with another value.
        """
        _at_least_one("size", size)
        given = list(scenarios)
        added = await self._write(partial(slots.fill, scenarios=given, size=size, last=last))
        self._freed.notify()
        self._whole.notify()
        return added

    async def lease(
        self, worker: str, n: int = 1, *, version: str = "", wait_s: float = 0.0
    ) -> Leased:
        """Return up to `n` attempts to make (see `WorkQueue`)."""
        _at_least_one("n", n)
        end = self._clock() + wait_s
        with self._freed.watched() as changed:
            while True:
                changed.clear()
                await self._look_at_terms()
                leased = await self._leased(worker, n, version)
                left = end - self._clock()
                if leased.leases or leased.finished or left <= 0:
                    return leased
                await within(changed, min(left, POLL_S))

    async def _leased(self, worker: str, n: int, version: str) -> Leased:
        ahead, seconds = self.max_groups_ahead, self._terms.seconds

        def operation(db: sqlite3.Connection) -> tuple[list[tuple[int, Lease]], bool]:
            slots.check_version(db, version)
            made = slots.lease(db, worker, n, ahead, seconds)
            return made, not made and ready.is_finished(db, 0)

        if self._leases_ended:
            return Leased(leases=(), finished=True)
        made, finished = await self._write(operation)
        for number, _ in made:
            self._terms.begin(number)
        return Leased(leases=tuple(lease for _, lease in made), finished=finished)

    def end_leasing(self) -> None:
        """Give no more leases: for workers the queue is finished, until it is opened again."""
        self._leases_ended = True
        self._freed.notify()

    async def submit(
        self,
        key: str,
        outcome: Trajectory | RolloutFailure | Outcomes,
        *,
        step: int | None = None,
        paid: Sequence[Paid] = (),
    ) -> Reply:
        """Store an attempt (see `WorkQueue`)."""
        submission = Submission.of(key, outcomes_of(outcome), step, paid)
        operation = partial(slots.submit, submission=submission, tries=self._tries)
        reply, ended = await self._write(operation)
        if failures_of(submission.outcomes):
            self._freed.notify()
        if ended:
            self._whole.notify()
        return reply

    async def renew(self, key: str) -> bool:
        """Begin a lease's term again (see `WorkQueue`)."""
        renewed = await self._write(partial(slots.renew, key=key))
        if renewed is not None:
            self._terms.begin(*renewed)
        return renewed is not None

    async def give_back(self, key: str, *, paid: Sequence[Paid] = ()) -> bool:
        """End a lease without an attempt (see `WorkQueue`)."""
        returned = await self._write(partial(slots.give_back, key=key, calls=paid))
        self._freed.notify()
        return returned

    def lease_state(self, key: str) -> str | None:
        """Return what became of a lease: "open", "over", "failed", "late" or "accepted"; None for a
        key that no lease has.
        """
        return self._db.read(partial(slots.lease_state, key=key))

    async def take(
        self,
        minimum: int,
        maximum: int,
        *,
        step: int,
        max_steps_off_policy: int | None = None,
        stale: Literal["put back", "drop"] = "put back",
        keep: Keep | None = None,
        wait_s: float | None = None,
    ) -> TakenBatch:
        """Wait for the groups of at least `minimum` scenarios to be whole; take those of at most
        `maximum`, in the order in which they became whole.

        The next call gives the groups after these. Train them with `model.train(groups,
        cursor=batch.cursor)`, then `commit(batch.cursor)`. Groups whose oldest attempt was sampled
        more than `max_steps_off_policy` steps before `step` are `stale`: their scenario is put
        back, or dropped. Groups for which `keep` is false are dropped. If no more groups can come,
        the batch has fewer than `minimum`. After `wait_s` seconds, or when cancelled, nothing is
        taken.
        """
        if not 1 <= _at_least_one("minimum", minimum) <= count_of("maximum", maximum):
            raise ConfigError(f"maximum must be at least minimum ({minimum}), got {maximum}")
        self.step = step
        await self._write(partial(slots.set_fact, name="step", value=step))
        picking = _Picking(
            maximum=maximum,
            step=step,
            max_steps_off_policy=max_steps_off_policy,
            drops_stale=stale == "drop",
            keep=keep or (lambda _: True),
        )
        end = None if wait_s is None else self._clock() + wait_s
        with self._whole.watched() as changed:
            while True:
                changed.clear()
                await self._look_at_terms()
                finished = await self._pick(picking)
                if len(picking.chosen) >= minimum or finished:
                    return await self._taken(picking, finished=finished)
                left = POLL_S if end is None else end - self._clock()
                if left <= 0:
                    picking.chosen = []
                    return picking.batch(self._position, finished=False)
                await within(changed, min(left, POLL_S))

    async def _taken(self, picking: _Picking, *, finished: bool) -> TakenBatch:
        """Go on to the picked groups, with what they and those that no group has have paid."""
        self._position = picking.position
        paid = await self._paid_by([each.group for each in picking.chosen])
        batch = picking.batch(self._position, paid, finished=finished)
        if paid:
            batch.groups[0].paid_by(receipts.account_of(paid))
        return batch

    async def _paid_by(self, groups: Sequence[int] | None) -> list[Paid]:
        if groups == []:
            return []
        paid = await self._write(partial(receipts.take, groups=groups, after=self._paid))
        self._paid = max([self._paid, *(each.number for each in paid)])
        return paid

    async def settle(self, builder: MetricsBuilder) -> None:
        """Book what attempts have paid that no step has trained: at the end of training."""
        for each in await self._paid_by(None):
            each.book(builder)

    async def _pick(self, picking: _Picking) -> bool:
        """Look at the groups that are whole; return whether no more can come."""
        picking.position, picking.chosen = self._position, []
        found = await self._write(partial(ready.ready_after, position=picking.position))
        old, passed, old_ones = [], [], 0
        for each in found:
            if len(picking.chosen) == picking.maximum:
                break
            picking.position = each.position
            verdict = "dropped" if each.passed else await self._verdict(picking, each)
            if verdict == "put back":
                old.append(each.group)
            elif verdict != "chosen" and not each.passed:
                passed.append(each.group)
                old_ones += verdict == "stale"
        picking.stale += len(old) + old_ones
        picking.dropped += len(passed) - old_ones
        if old:
            await self._write(partial(ready.put_back_stale, groups=old))
        if passed:
            await self._write(partial(ready.pass_over, groups=passed, stale=old_ones))
        if old or passed:
            self._freed.notify()
        return await self._write(partial(ready.is_finished, position=picking.position))

    async def _verdict(self, picking: _Picking, each: Ready) -> str:
        if picking.is_stale(each):
            return "stale" if picking.drops_stale else "put back"
        if each.group not in picking.loaded:
            groups = await asyncio.to_thread(self._db.read, partial(ready.load, group=each.group))
            picking.loaded[each.group] = [group for group in groups if picking.keep(group)]
        if not picking.loaded[each.group]:
            return "dropped"
        picking.chosen.append(each)
        return "chosen"

    async def commit(self, cursor: int) -> None:
        """Count the groups up to a cursor as trained, once the step's row is written."""
        await self._write(partial(ready.commit, cursor=cursor))
        self._freed.notify()

    async def rewind(self) -> None:
        """Have the next `take` begin after the last committed cursor: the step has failed."""
        self._position, _ = await self._write(_begun_at)
        self._paid = 0

    async def counts(self) -> Counts:
        """Return the numbers of attempts and groups."""
        await self._look_at_terms()
        return await asyncio.to_thread(self._db.read, ready.counts)

    async def set_aside(self) -> list[SetAside]:
        """Return the scenarios whose attempts all failed, with the failures."""
        return await asyncio.to_thread(self._db.read, ready.set_aside)

    def close(self) -> None:
        """Close the queue; leases stay open."""
        self._db.close()

    async def aclose(self) -> None:
        """Close the queue; leases stay open."""
        await asyncio.to_thread(self.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _look_at_terms(self) -> None:
        """Free the slots of expired leases, at most once in a while."""
        now = self._clock()
        if now < self._next_look:
            return
        self._next_look = now + min(POLL_S, self._terms.seconds / 4)
        over = self._terms.over(await self._write(slots.open_leases))
        if over:
            seconds = self._terms.seconds
            await self._write(partial(slots.expire, leases=over, seconds=seconds))
            self._freed.notify()
            self._whole.notify()

    async def _write(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        return await asyncio.wrap_future(self._db.write(operation))
