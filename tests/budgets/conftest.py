"""Calls that no run has booked are dropped after each test, so that no other one pays them."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from art_core.data.account import UNOWNED


@pytest.fixture(autouse=True)
def _no_calls_left() -> Iterator[None]:
    yield
    gc.collect()  # groups that no model logged leave their calls
    UNOWNED.take()
