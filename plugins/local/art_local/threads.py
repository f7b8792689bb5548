"""How torch's threads wait: asleep, not spinning. Two busy processes on the same cores otherwise
slow each other 10 times and more.
"""

from __future__ import annotations

import os
import sys

WAIT_ASLEEP = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}


def wait_asleep() -> bool:
    """Set OpenMP's wait policy, unless the user set one. False when torch is loaded already: it
    reads it once, at import.
    """
    for name, value in WAIT_ASLEEP.items():
        os.environ.setdefault(name, value)
    return "torch" not in sys.modules
