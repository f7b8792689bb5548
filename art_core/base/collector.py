"""Python's garbage collector, which need not walk large libraries."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

LARGE_IMPORT = 100


@contextmanager
def importing() -> Iterator[None]:
    """Pause the collector inside the block, and leave what it imported out of later collections.

    A collection walks every object, and those of torch and transformers take 0.4 seconds. Where at
    least `LARGE_IMPORT` modules are new, everything that exists then is left out.
    """
    before = len(sys.modules)
    with collector_paused():
        yield
        if len(sys.modules) - before >= LARGE_IMPORT:
            gc.freeze()


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
