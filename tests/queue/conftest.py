"""A queue with a clock of its own, in the directory of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from art_core.queue.queue import AttemptQueue
from queued import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def opened(tmp_path, clock) -> Iterator[Callable[..., AttemptQueue]]:
    """Return a function that opens the queue of one run; at the end all are closed."""
    queues: list[AttemptQueue] = []

    def open_queue(run_dir: Path = tmp_path, **options: Any) -> AttemptQueue:
        queue = AttemptQueue.open(run_dir, **{"step": 0, "clock": clock, **options})
        queues.append(queue)
        return queue

    yield open_queue
    for queue in queues:
        queue.close()


@pytest.fixture
def queue(opened) -> AttemptQueue:
    return opened()
