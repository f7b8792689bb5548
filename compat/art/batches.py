"""Groups in batches, gathered ahead of the step that trains on them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

from art.gather import gather_trajectory_groups
from art.trajectories import TrajectoryGroup


async def trajectory_group_batches(
    groups: Iterable[Any],
    *,
    batch_size: int,
    max_batch_exceptions: int | float = 0,
    max_concurrent_batches: int = 4,
    skip_batches: int = 0,
    pbar_desc: str | None = "batches",
    pbar_total_completion_tokens: bool = False,
) -> AsyncIterator[list[TrajectoryGroup]]:
    """Yield batches of `batch_size` groups in the order in which groups end; the last may be short.

    The groups of `max_concurrent_batches` batches run at the same time. More exceptions in a group
    than `max_batch_exceptions` raise the last of them.
    """
    unstarted = list(groups)[batch_size * skip_batches :][::-1]
    running: set[asyncio.Task[list[TrajectoryGroup]]] = set()
    batch: list[TrajectoryGroup] = []
    try:
        while unstarted or running:
            while unstarted and len(running) < batch_size * max_concurrent_batches:
                one = gather_trajectory_groups(
                    [unstarted.pop()], pbar_desc=None, max_exceptions=max_batch_exceptions
                )
                running.add(asyncio.create_task(one))
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            batch += [group for task in done for group in task.result()]
            while len(batch) >= batch_size:
                yield batch[:batch_size]
                batch = batch[batch_size:]
    finally:
        for task in running:
            task.cancel()
    if batch:
        yield batch
