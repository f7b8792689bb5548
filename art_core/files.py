"""Small files that are whole or absent: written aside, synced, renamed."""

from __future__ import annotations

import os
import uuid
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
