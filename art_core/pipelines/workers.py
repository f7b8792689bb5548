"""Attempts of a queue, as many at the same time as there are slots."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable
from contextlib import nullcontext
from typing import Any

import attrs

from art_core.base.errors import ConfigError, HistoryError, RolloutError, RolloutFailure
from art_core.data.account import charging, open_account
from art_core.data.outcome import Outcomes, outcomes
from art_core.evaluation.attempts import Rollout
from art_core.evaluation.evaluate import ModelAt
from art_core.model.trainable import TrainableModel
from art_core.pipelines.config import PipelineConfig
from art_core.pipelines.evaluations import UsedSteps
from art_core.pipelines.gauge import Gauge
from art_core.pipelines.supply import Supply
from art_core.queue.paid import paid_of
from art_core.queue.queue import AttemptQueue
from art_core.queue.values import Lease

LEASE_S = 15.0
"""The term of a lease. Those of a process that was killed are made again when it is over."""
WAIT_S = 1.0


@attrs.define(eq=False)
class Failures:
    """The failed attempts since the last step."""

    config: PipelineConfig
    _ended: int = 0
    _failed: int = 0
    _useless: int = 0
    _first: RolloutFailure | None = None

    def step_ended(self) -> None:
        """Begin to count again."""
        self._ended = self._failed = 0

    def count(self, result: Outcomes) -> None:
        """Count an attempt that ended; RolloutError once too many failed."""
        failures = [each for each in result.values() if isinstance(each, RolloutFailure)]
        self._ended += 1
        self._failed += bool(failures)
        self._useless = self._useless + 1 if len(failures) == len(result) else 0
        self._first = self._first or next(iter(failures), None)
        batch, limit = self._batch, self.config.max_exceptions
        if self._useless >= batch:
            raise RolloutError(
                f"the last {self._useless} rollouts failed; the first: {self._first}",
                "Mend the rollout; the attempts before are kept.",
            )
        if limit is None or not failures:
            return
        most = limit if limit >= 1 or not limit else limit * max(self._ended, batch)
        if self._failed > most:
            raise RolloutError(
                f"{self._failed} of {self._ended} rollouts since the last step failed, more than "
                f"max_exceptions allows; the first: {self._first}",
                "Mend the rollout, or raise max_exceptions; the attempts before are kept.",
            )

    @property
    def _batch(self) -> int:
        return self.config.min_batch_size * self.config.attempts


@attrs.define(eq=False)
class Workers:
    """Makes the attempts of a queue with the weights of `step`, which the trainer advances."""

    queue: AttemptQueue
    supply: Supply
    model: TrainableModel
    rollout: Rollout
    config: PipelineConfig
    used: UsedSteps
    failures: Failures
    step: int
    running: Gauge = attrs.field(factory=Gauge)
    idle: Gauge = attrs.field(factory=Gauge)
    _attempts: dict[asyncio.Task[None], Lease] = attrs.field(factory=dict)
    _making: set[str] = attrs.field(factory=set)
    _ended: asyncio.Event = attrs.field(factory=asyncio.Event)
    _stopping: bool = False
    _error: BaseException | None = None
    _name: str = attrs.field(factory=lambda: f"{socket.gethostname()}:{os.getpid()}")

    async def run(self) -> None:
        """Make attempts until the queue has no more, or `stop` is called."""
        renewing = asyncio.create_task(self._renew())
        try:
            while not self._stopping and await self._begin_some():
                pass
            while self._attempts:
                await self._one_ended()
        finally:
            renewing.cancel()
            await self._cancel()
            self.idle.set(0)

    def stop(self) -> None:
        """Begin no more attempts."""
        self._stopping = True
        self._ended.set()

    async def _begin_some(self) -> bool:
        """Begin attempts in all free slots, when the queue has some; return whether it may have
        more.
        """
        free = self.config.max_concurrent - len(self._making)
        if not free:
            await self._one_ended()
            return True
        leased = await self.queue.lease(self._name, free, wait_s=WAIT_S)
        for lease in leased:
            if self._stopping:
                await self.queue.give_back(lease.key)
            else:
                self._begin(lease)
        self._show()
        await self.supply.refill(len(leased))
        self._raise_error()
        return not leased.finished

    def _begin(self, lease: Lease) -> None:
        task = asyncio.create_task(self._attempt(lease))
        self._attempts[task] = lease
        self._making.add(lease.key)
        task.add_done_callback(self._take_out)

    async def _one_ended(self) -> None:
        self._ended.clear()
        await self._ended.wait()
        self._raise_error()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _take_out(self, task: asyncio.Task[None]) -> None:
        self._free_slot(self._attempts.pop(task))
        if not task.cancelled():
            self._error = self._error or task.exception()

    def _free_slot(self, lease: Lease) -> None:
        self._making.discard(lease.key)
        self._show()
        self._ended.set()

    def _show(self) -> None:
        self.running.set(len(self._making))
        free = self.config.max_concurrent - len(self._making)
        self.idle.set(0 if self._stopping else free)

    async def _attempt(self, lease: Lease) -> None:
        step, scenario = self.step, self.supply.scenarios[lease.scenario.index]
        pinned = self.config.swap == "attempt"
        served: Any = ModelAt(self.model, step) if pinned else self.model
        account, budget = open_account(), self.model.metrics_builder().budget
        try:
            with self.used.using(step) if pinned else nullcontext(), charging(account):
                result = await outcomes(_made(self.rollout, served, scenario), self.config.timeout)
        except BaseException:
            if account.waiting:
                await self.queue.give_back(lease.key, paid=paid_of(account.take(), budget))
            raise
        self._free_slot(lease)
        await self.queue.submit(lease.key, result, step=step, paid=paid_of(account.take(), budget))
        self.failures.count(result)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(LEASE_S / 3)
            for task, lease in list(self._attempts.items()):
                try:
                    valid = await self.queue.renew(lease.key)
                except HistoryError:
                    continue  # a full disk: the next renewal may work
                if not valid:
                    task.cancel()

    async def _cancel(self) -> None:
        """End the attempts that run; others make them."""
        attempts = dict(self._attempts)
        for task in attempts:
            task.cancel()
        await asyncio.gather(*attempts, return_exceptions=True)
        for lease in attempts.values():
            await self.queue.give_back(lease.key)


async def _made(rollout: Rollout, model: Any, scenario: Any) -> Any:
    made = rollout(model, scenario)
    if not isinstance(made, Awaitable):
        raise ConfigError(
            f"the rollout returned {type(made).__name__}, not an awaitable",
            "Write `async def rollout(model, scenario)`.",
        )
    return await made
