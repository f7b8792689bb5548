"""Small files that are whole or absent: written aside, synced, renamed."""

from __future__ import annotations

import os
import tempfile
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
    fd, aside = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        Path(aside).replace(path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one when the file is missing."""
    try:
        value: dict[str, Any] = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    return value
