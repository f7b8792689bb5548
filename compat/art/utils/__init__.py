"""ART's small helpers for scripts."""

from __future__ import annotations

from typing import Any

from art._missing import NAMES, missing
from art.utils.format_message import format_message
from art.utils.get_model_step import get_model_step
from art.utils.iterate_dataset import iterate_dataset
from art.utils.limit_concurrency import limit_concurrency
from art.utils.log_http_errors import log_http_errors
from art.utils.retry import retry

__all__ = [
    "format_message",
    "get_model_step",
    "iterate_dataset",
    "limit_concurrency",
    "log_http_errors",
    "retry",
]


def __getattr__(name: str) -> Any:
    raise missing(name, NAMES, "art.utils")
