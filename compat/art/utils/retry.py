"""Call a function again when it fails."""

from __future__ import annotations

from art_core import retry

__all__ = ["retry"]
