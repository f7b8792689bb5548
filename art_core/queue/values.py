"""The values of a queue of attempts: what workers lease and submit, what the trainer takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol

import attrs

from art_core.base.errors import RolloutFailure
from art_core.data.outcome import Outcomes
from art_core.data.trajectory import Trajectory, TrajectoryGroup
from art_core.queue.paid import Paid

Reply = Literal["accepted", "duplicate", "late"]
"""The reply to a submitted attempt: its slot has it now; it was submitted before; its slot has
another attempt, or its scenario was put back."""


@attrs.frozen(kw_only=True)
class Scenario:
    """A scenario in an epoch, at which a group of attempts is made. `value` is any JSON value, and
    `id` names the scenario in metrics, by default its index.
    """

    epoch: int
    index: int
    value: Any
    id: str = attrs.field(default=attrs.Factory(lambda self: f"{self.index}", takes_self=True))


@attrs.frozen(kw_only=True)
class Lease:
    """An attempt that a worker has to make, within `seconds` or until it renews the lease.

    `slot` is its place in the `group`, from 0, and `attempt` counts the leases of the slot, from 1.
    `step` is the trainer's step when it was leased.
    """

    key: str
    group: int
    slot: int
    attempt: int
    scenario: Scenario
    seconds: float
    step: int


@attrs.frozen(kw_only=True)
class Leased:
    """The attempts that a worker was given. If the queue is `finished`, no more will come."""

    leases: tuple[Lease, ...]
    finished: bool

    def __iter__(self) -> Iterator[Lease]:
        return iter(self.leases)

    def __len__(self) -> int:
        return len(self.leases)


@attrs.frozen(kw_only=True)
class TakenBatch:
    """Whole groups for one training step; the step's row gets the `cursor`.

    `stale` groups were too old and `dropped` ones refused, since the take before. `off_policy` has
    the steps between the sampling of each scenario's oldest attempt and this take. `paid` are the
    receipts of these groups, and of attempts that no group has: training the groups books them. If
    `finished`, no more groups will come.
    """

    groups: tuple[TrajectoryGroup, ...]
    cursor: int
    stale: int
    dropped: int
    off_policy: tuple[int, ...]
    paid: tuple[Paid, ...]
    finished: bool


@attrs.frozen(kw_only=True)
class Counts:
    """Numbers of attempts (`waiting`, `leased`, `done` ones of groups that are not whole, leases
    that `expired`) and of groups (`ready` to be trained, `trained`, `dropped`, `stale`,
    `set_aside`, all that were `filled` in).
    """

    waiting: int
    leased: int
    done: int
    ready: int
    trained: int
    dropped: int
    stale: int
    set_aside: int
    expired: int
    filled: int


@attrs.frozen(kw_only=True)
class SetAside:
    """A scenario whose attempts all failed, with the last failure of each slot."""

    scenario: Scenario
    failures: tuple[RolloutFailure, ...]


class WorkQueue(Protocol):
    """What workers use of a queue, in the same process or over HTTP."""

    async def lease(
        self, worker: str, n: int = 1, *, version: str = "", wait_s: float = 0.0
    ) -> Leased:
        """Return up to `n` attempts to make; wait at most `wait_s` seconds for the first.

        ConfigError if the queue takes attempts of another `version` of the rollout.
        """
        ...

    async def submit(
        self,
        key: str,
        outcome: Trajectory | RolloutFailure | Outcomes,
        *,
        step: int | None = None,
        paid: Sequence[Paid] = (),
    ) -> Reply:
        """Store an attempt. When this returns, the attempt survives the death of the machine; the
        same call again changes nothing.

        `step` is that of the weights which made the attempt, if its turns do not have it. `paid`
        are the receipts of its paid calls; they are booked once, whatever becomes of the attempt.
        HistoryError, with nothing stored, if the disk does not take it; ConfigError for a key that
        no lease has.
        """
        ...

    async def renew(self, key: str) -> bool:
        """Begin a lease's term again; False if the lease is over, and so is the work on it."""
        ...

    async def give_back(self, key: str, *, paid: Sequence[Paid] = ()) -> bool:
        """End a lease without an attempt, so that another worker gets it; False if it is over. The
        receipts of what was `paid` are kept.
        """
        ...
