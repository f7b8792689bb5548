"""A worker: it leases attempts, makes them at the same time, renews the leases, and submits."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

import attrs

from art_core.base.errors import ArtError, RolloutFailure
from art_core.data.account import Account, charging, open_account
from art_core.data.outcome import Outcomes, outcomes
from art_core.data.trajectory import RolloutResult
from art_core.queue.paid import paid_of
from art_core.queue.values import Lease, WorkQueue

log = logging.getLogger("art_core")

WAIT_S = 2.0
"""How long one request for leases waits at the server."""
RENEWALS = 3
"""Renewals in a term."""
Attempt = Callable[[Lease], Awaitable[RolloutResult]]
Ended = Callable[[Lease, str], None]


@attrs.define(kw_only=True, eq=False)
class QueueWorker:
    """Makes attempts of a queue until it is finished, or `stop` is called.

    `attempt` makes one, in at most `timeout` seconds. `ended` is called with each lease and what
    became of it: "accepted", "failed" (and accepted), "duplicate", "late" or "lost", when the lease
    was over. `replies` counts them. What an attempt pays for goes to the queue, whatever its end.
    """

    queue: WorkQueue
    attempt: Attempt
    name: str
    concurrent: int = 8
    version: str = ""
    timeout: float | None = None
    ended: Ended = lambda _, __: None
    replies: Counter[str] = attrs.field(factory=Counter, init=False)
    _running: dict[asyncio.Task[None], Lease] = attrs.field(factory=dict, init=False)
    _stopping: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)

    async def run(self) -> None:
        """Work. When it is cancelled, the attempts that run are cancelled and given back."""
        try:
            while not self._stopping.is_set():
                free = self.concurrent - len(self._running)
                if not free:
                    await self._one_ends()
                    continue
                wait_s = 0.0 if self._running else WAIT_S
                leased = await self.queue.lease(
                    self.name, free, version=self.version, wait_s=wait_s
                )
                for lease in leased:
                    task = asyncio.create_task(self._work(lease))
                    self._running[task] = lease
                if leased.finished:
                    break
                if len(leased) < free and self._running:
                    await self._one_ends()
            while self._running:
                await self._one_ends()
        finally:
            await self._give_back_all()

    def stop(self) -> None:
        """Lease no more; `run` returns when the attempts that run have ended."""
        self._stopping.set()

    async def _one_ends(self) -> None:
        """Wait until an attempt ends, or for a moment: others may be free by then."""
        done, _ = await asyncio.wait(
            self._running, timeout=WAIT_S, return_when=asyncio.FIRST_COMPLETED
        )
        for task in done:
            del self._running[task]
            task.result()

    async def _work(self, lease: Lease) -> None:
        account = open_account()
        making = asyncio.create_task(self._made(lease, account))
        renewing = asyncio.create_task(self._renew_until_over(lease))
        reply, answers = "lost", True
        try:
            await asyncio.wait((making, renewing), return_when=asyncio.FIRST_COMPLETED)
            if making.done():
                reply = await self._submitted(lease, making.result(), account)
            else:
                renewing.result()
        except ArtError:
            answers = False
            raise
        finally:
            making.cancel()
            renewing.cancel()
            await asyncio.gather(making, renewing, return_exceptions=True)
            if answers and account.waiting:
                await self.queue.give_back(lease.key, paid=paid_of(account.take()))
        self._count(lease, reply)

    async def _submitted(self, lease: Lease, made: Outcomes, account: Account) -> str:
        reply: str = await self.queue.submit(lease.key, made, paid=paid_of(account.calls))
        account.take()
        failed = all(isinstance(each, RolloutFailure) for each in made.values())
        return "failed" if failed and reply == "accepted" else reply

    async def _made(self, lease: Lease, account: Account) -> Outcomes:
        with charging(account):
            return await outcomes(self.attempt(lease), self.timeout)

    async def _renew_until_over(self, lease: Lease) -> None:
        renewed = True
        while renewed:
            await asyncio.sleep(lease.seconds / RENEWALS)
            renewed = await self.queue.renew(lease.key)

    def _count(self, lease: Lease, reply: str) -> None:
        self.replies[reply] += 1
        self.ended(lease, reply)

    async def _give_back_all(self) -> None:
        running, self._running = self._running, {}
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for lease in running.values():
            with suppress(ArtError):
                await self.queue.give_back(lease.key)
