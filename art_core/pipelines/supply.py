"""Scenarios for the queue, in the order of their epochs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import attrs

from art_core.data.dataset import places, scenario_id
from art_core.model.scenarios import plain
from art_core.pipelines.config import PipelineConfig
from art_core.queue.queue import AttemptQueue
from art_core.queue.values import Scenario

CHUNK = 256
LOOK_S = 1.0
"""How often the queue is looked at for what workers elsewhere have leased."""


@attrs.define(eq=False)
class Supply:
    """Fills the queue of a run with the scenarios that its workers need next.

    A scenario of an epoch is in the queue once, however often it is filled in. If the queue is
    `served`, workers in other processes lease from it, too.
    """

    queue: AttemptQueue
    scenarios: Sequence[Any]
    config: PipelineConfig
    served: bool = False
    _next: int = 0
    _waiting: int = 0
    _filling: asyncio.Lock = attrs.field(factory=asyncio.Lock)

    @property
    def _end(self) -> int | None:
        passes = self.config.passes
        return None if passes is None else passes * len(self.scenarios)

    async def begin(self) -> None:
        """Begin with the epoch that the queue is in."""
        counts = await self.queue.counts()
        size = len(self.scenarios)
        self._next, self._waiting = counts.filled // size * size, counts.waiting
        await self.refill(leased=0)

    async def refill(self, leased: int) -> None:
        """Fill the queue if, with so many attempts leased, few are left for the workers."""
        self._waiting -= leased
        if self._waiting >= self._least or self._next == self._end:
            return
        async with self._filling:
            self._waiting = (await self.queue.counts()).waiting
            while self._waiting < self._least and self._next != self._end:
                self._waiting += self.config.attempts * await self._fill_some()

    @property
    def _least(self) -> int:
        """The attempts that workers may take at once."""
        attempts = self.config.groups_ahead * self.config.attempts
        return attempts if self.served else min(2 * self.config.max_concurrent, attempts)

    async def keep_filled(self) -> None:
        """Fill the queue for workers in other processes, until this is cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            self._waiting = (await self.queue.counts()).waiting
            await self.refill(leased=0)

    async def _fill_some(self) -> int:
        missing = -(-(self._least - self._waiting) // self.config.attempts)
        end = self._next + min(missing, CHUNK)
        end = end if self._end is None else min(end, self._end)
        taken = places(len(self.scenarios), self._next, end, self.config.seed)
        filled = [self._scenario(epoch, index) for epoch, index in taken]
        self._next = end
        return await self.queue.fill(filled, size=self.config.attempts, last=end == self._end)

    def _scenario(self, epoch: int, index: int) -> Scenario:
        scenario = self.scenarios[index]
        return Scenario(epoch=epoch, index=index, value=plain(scenario), id=scenario_id(scenario))
