from __future__ import annotations

import os

import pytest


@pytest.fixture
def trials() -> int:
    """How often chance is tried: `make faults` says 1,000, CI a tenth of it."""
    return int(os.environ.get("FAULT_TRIALS") or (100 if os.environ.get("CI") else 20))
