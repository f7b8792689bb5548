"""Python's garbage collector, paused while large libraries are imported."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Collect no garbage inside the block, unless another thread's block ends before.

    An import makes hundreds of thousands of objects and no garbage. The collector walks all of them
    several times: a third of the time that transformers takes to import.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
