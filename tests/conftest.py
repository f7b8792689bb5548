"""What all tests of the core share."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test without the caller's `ART_...`: CI sets ART_STRICT, you may set ART_DIR."""
    for name in [name for name in os.environ if name.startswith("ART_")]:
        monkeypatch.delenv(name)
