"""torch's threads on a CPU: each thread of ours that computes has helpers of its own.

OpenMP lets helpers that wait spin for a moment, so that the next product begins at once. With more
helpers than cores it puts them to sleep instead. A step has thousands of small products, and each
one then waits until they are awake. So a thread that stops computing ends its helpers; new ones
take a tenth of a millisecond.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

SOFT = 1


def release_helpers() -> None:
    """End the helpers of the calling thread; the next product starts new ones."""
    pause = _pause()
    if pause is not None:
        pause(SOFT)


@functools.cache
def _pause() -> Callable[[int], int] | None:
    """Return the function of the OpenMP library that torch brings; None where it brings none."""
    import torch

    found = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    try:
        return ctypes.CDLL(str(found[0])).omp_pause_resource_all if found else None
    except (OSError, AttributeError):
        return None
