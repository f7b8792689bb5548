"""Automatic trajectories patch HTTP clients in ART, and are missing here."""

from __future__ import annotations

from typing import Any

from art._missing import NAMES, missing


def __getattr__(name: str) -> Any:
    raise missing(name, NAMES, "art.auto_trajectory")
