"""ART's path of the local backend."""

from __future__ import annotations

from typing import Any

from art._missing import NAMES, missing
from art.local.backend import LocalBackend

__all__ = ["LocalBackend"]


def __getattr__(name: str) -> Any:
    raise missing(name, NAMES, "art.local")
