"""The environment variables that torch and its OpenMP library read once, when torch is imported."""

from __future__ import annotations

import os
import sys

SPINS = 10_000
"""About 0.1 ms, longer than most pauses between two products, and short for another process."""


def set_torch_environment() -> bool:
    """Prepare a process that computes on a CPU. Return False when torch is loaded already.

    Torch's threads spin for a short time while they wait, unless the user set OpenMP's wait policy.
    Tensors of 2 MB and more ask for huge pages: weights are read faster, and a training step has
    fewer page faults. Values that the user set stay.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    return "torch" not in sys.modules
