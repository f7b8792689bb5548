"""Which names a model's endpoint answers to: the newest weights, those of a step, the base
model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import attrs

from art_core.endpoint.engine import ChatTokenizer, ServedModel
from art_local.session.leases import Lease, LeasedEngine
from art_local.session.resident import Resident


@attrs.frozen
class ServedNames:
    """`name` is the newest step when the request arrives, `name@step` that step, the base model's
    name the untrained weights. A request keeps the weights that it began with.
    """

    resident: Resident
    tokenizer: ChatTokenizer

    def names(self) -> Sequence[str]:
        """Return the names to list."""
        name = self.resident.name
        steps = sorted({0, *self.resident.served_steps()}, reverse=True)
        return [name, *(f"{name}@{step}" for step in steps), self.resident.base_model]

    async def resolve(self, name: str) -> ServedModel:
        """Return what a name means now; older steps are loaded first. KeyError for an unknown
        name.
        """
        if name == self.resident.base_model and name != self.resident.name:
            return self._served(await self._lease(0), name, None)
        step = self._step(name)
        return self._served(await self._lease(step), f"{self.resident.name}@{step}", step)

    async def _lease(self, step: int) -> Lease:
        lease = self.resident.loaded_lease(step)
        if lease is None:
            lease = await asyncio.to_thread(self.resident.lease, step)
        return lease

    def _step(self, name: str) -> int:
        if name == self.resident.name:
            return self.resident.served_step
        stem, at, step = name.rpartition("@")
        if not at or stem != self.resident.name or not step.isdecimal():
            raise KeyError(name)
        return int(step)

    def _served(self, lease: Lease, name: str, step: int | None) -> ServedModel:
        return ServedModel(
            engine=LeasedEngine(self.resident.engine, lease),
            tokenizer=self.tokenizer,
            adapter=lease.adapter,
            name=name,
            policy_version=step,
        )
