"""What every backend does. Subclass `BackendContract` and give `make_backend`."""

from __future__ import annotations

from art_core.testing.backend.contract import BackendContract
from art_core.testing.backend.kit import (
    QUESTION,
    ask,
    attempts,
    plugins_with_prices,
    registered,
    tokens,
)

__all__ = [
    "QUESTION",
    "BackendContract",
    "ask",
    "attempts",
    "plugins_with_prices",
    "registered",
    "tokens",
]
