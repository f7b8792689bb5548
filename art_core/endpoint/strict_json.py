"""Strict JSON: Python's parser also accepts NaN and other forms that models write."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import orjson

from art_core.base.files import json_line

MAX_DEPTH = 100
_SURROGATES = re.compile("[\ud800-\udfff]")


def without_surrogates(text: str) -> str:
    """Replace lone surrogates, which JSON cannot represent, by U+FFFD."""
    return _SURROGATES.sub("\ufffd", text)


def json_text(value: Any) -> str:
    """Return a value as JSON without lone surrogates."""
    return without_surrogates(json.dumps(value, ensure_ascii=False))


def any_json(data: bytes) -> Any:
    """Read JSON, also with the NaN of log-probs that Python writes; ValueError if it is not."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return json.loads(data)


def json_bytes(value: Any) -> bytes:
    """Return a value as JSON; values that JSON cannot represent are replaced."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json_line(value).rstrip()


def read_json(text: str, start: int = 0) -> tuple[Any, int] | None:
    """Return the JSON value that begins at `start`, and its end.

    None for text that is not JSON, for NaN, for numbers that are too large for a float, and for
    values of more than MAX_DEPTH levels.
    """
    try:
        value, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    return None if too_deep(value) else (value, end)


def whole_json(text: str) -> Any:
    """Return the value of a text that is one JSON value with spaces around it, else None."""
    text = text.strip()
    read = read_json(text)
    return read[0] if read is not None and read[1] == len(text) else None


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits} is too large")
    return number


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_no_constant)


def too_deep(value: Any) -> bool:
    """Return whether a value has more than MAX_DEPTH levels."""
    level = [value]
    for _ in range(MAX_DEPTH):
        containers = [each for each in level if isinstance(each, dict | list)]
        inside = (each.values() if isinstance(each, dict) else each for each in containers)
        level = [value for values in inside for value in values]
    return any(isinstance(each, dict | list) for each in level)
