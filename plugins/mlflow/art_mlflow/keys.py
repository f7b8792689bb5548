"""Metric keys as MLflow takes them, and back: it refuses most punctuation, and lone dots."""

from __future__ import annotations

import re

LONGEST = 250
_REFUSED = re.compile(r"[^\w/. -]|(?<![^/])\.{1,2}(?![^/])")
_ESCAPED = re.compile(":([0-9a-f]+):")


def to_mlflow(key: str) -> str:
    """Return a key with `:<hex code point>:` for each character that MLflow refuses there, and for
    colons.
    """
    return _REFUSED.sub(lambda found: "".join(f":{ord(c):x}:" for c in found[0]), key)


def from_mlflow(key: str) -> str:
    """Return the key that `to_mlflow` was given."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), key)
