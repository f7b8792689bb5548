"""Values as JSON: small files that are whole or absent, and lines that any value fits into."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import orjson

from art_core.errors import ConfigError


def replace_json(path: Path, value: Any, *, sync: bool = True) -> None:
    """Replace a JSON file whole; a reader, or a kill at any point, sees the old or the new content.

    Raises ConfigError, with the file as it was, for a value that JSON can't hold.
    """
    try:
        data = orjson.dumps(value, option=orjson.OPT_INDENT_2)
    except TypeError as error:
        raise ConfigError(
            f"cannot keep this in {path.name}: {error}", "Use JSON values."
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile: its files are for their owner alone, and a team reads each other's runs.
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with aside.open("xb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one when the file is missing."""
    try:
        value: dict[str, Any] = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    return value


_OPTIONS = orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
_WIDEST_INTEGER = 1 << 63


def json_line(stored: Mapping[str, Any]) -> bytes:
    """Return values as one line of JSON; what JSON can't hold becomes text, so that nothing is lost
    for one odd object.
    """
    try:
        return orjson.dumps(stored, default=_plain, option=_OPTIONS)
    except TypeError:
        return orjson.dumps(_cleaned(stored), default=_plain, option=_OPTIONS)


def _plain(value: Any) -> Any:
    """Return something close to a value that JSON has no form for."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json", warnings=False)
    if isinstance(value, Decimal | Fraction):
        try:
            return float(value)
        except (ValueError, OverflowError):
            return str(value)
    if isinstance(value, set | frozenset):
        return list(value)
    return value.tolist() if hasattr(value, "tolist") else repr(value)


def _cleaned(value: Any) -> Any:
    """Return JSON values without the keys, integers and halves of characters that orjson
    refuses.
    """
    if isinstance(value, Mapping):
        keys = (_cleaned(k if isinstance(k, str) else repr(k)) for k in value)
        return dict(zip(keys, map(_cleaned, value.values()), strict=True))
    if isinstance(value, list | tuple):
        return [_cleaned(v) for v in value]
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, int) and not -_WIDEST_INTEGER <= value < _WIDEST_INTEGER:
        return str(value)
    return value
