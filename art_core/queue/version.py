"""The version of a rollout: a worker and its queue must have the same one."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

DIGITS = 12


def version_of(rollout: Callable[..., Any]) -> str:
    """Return a digest of the file that defines a rollout; "" if there is no such file.

    Other modules that the rollout imports are not part of it.
    """
    inner = inspect.unwrap(rollout)
    while hasattr(inner, "func"):  # functools.partial
        inner = inspect.unwrap(inner.func)
    place = inner if hasattr(inner, "__code__") else type(inner)
    try:
        source = Path(inspect.getsourcefile(place) or "").read_bytes()
    except (OSError, TypeError):
        return ""
    return hashlib.sha256(source).hexdigest()[:DIGITS]
