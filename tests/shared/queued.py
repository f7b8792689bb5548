"""Scenarios, attempts and a worker, for tests of the queue."""

from __future__ import annotations

import attrs

import art_core as art
from art_core.queue.queue import AttemptQueue
from art_core.queue.values import Scenario


@attrs.define
class Clock:
    """Seconds that pass only when a test has them pass."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def scenarios(n: int, epoch: int = 0) -> list[Scenario]:
    return [Scenario(epoch=epoch, index=i, value={"question": i}) for i in range(n)]


def attempt(reward: float = 1.0, step: int | None = None) -> art.Trajectory:
    return art.Trajectory(
        messages_and_choices=[{"role": "user", "content": "hi"}],
        reward=reward,
        initial_policy_version=step,
    )


FAILURE = art.RolloutFailure(reason="raised", type="ValueError", message="no")


async def run_all(queue: AttemptQueue, *, step: int | None = None, n: int = 100) -> list[str]:
    """Lease all that there is and submit an attempt for each; return the keys."""
    leased = await queue.lease("w", n)
    for lease in leased:
        assert await queue.submit(lease.key, attempt(), step=step) == "accepted"
    return [lease.key for lease in leased]
