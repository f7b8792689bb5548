"""Train and serve LoRA adapters on this machine: the backend `art.backend("local")`."""

from __future__ import annotations

import os
import sys

WAIT_ASLEEP = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "5000"}
"""A thread that waits spins for about 50 microseconds, and then sleeps."""


def wait_asleep() -> bool:
    """Make torch's threads sleep while they wait, unless the user set OpenMP's wait policy.

    Threads that spin for long slow other busy processes on the same cores 10 times and more.
    Returns False when torch is loaded already: it reads the policy once, at import.
    """
    for name, value in WAIT_ASLEEP.items():
        os.environ.setdefault(name, value)
    return "torch" not in sys.modules
