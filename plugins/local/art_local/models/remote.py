"""A base model at a URL that fsspec opens, copied into the cache once."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from art_core.base.errors import BackendError, ConfigError

URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+(::|://)")
ENDINGS = (".safetensors", ".json", ".model", ".txt", ".jinja")


def opened(url: str) -> tuple[Any, str]:
    """Return the file system of a URL and the path in it; ConfigError if fsspec can't open it."""
    import fsspec

    try:
        files, path = fsspec.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{url} can't be opened: {error}",
            "fsspec names the package that a protocol needs, such as s3fs for s3://.",
        ) from error
    return files, str(path)


def copy_of(url: str, cache: Path, problem_with: Callable[[Path], str | None]) -> Path:
    """Return a local directory with the model files at a URL. A copy of the same names and sizes is
    used again.

    Raises ConfigError for a URL that can't be opened, BackendError for files that can't be copied.
    """
    files, path = opened(url)
    try:
        found = sorted(
            (entry["name"], entry.get("size") or 0)
            for entry in files.ls(path, detail=True)
            if entry["type"] == "file" and str(entry["name"]).endswith(ENDINGS)
        )
        key = hashlib.sha256(repr((url, found)).encode()).hexdigest()[:16]
        place = cache / "models" / f"url-{key}"
        if problem_with(place) is None:
            return place
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".tmp-", dir=place.parent) as scratch:
            copy = Path(scratch) / "model"
            copy.mkdir()
            for name, _ in found:
                files.get_file(name, str(copy / PurePosixPath(name).name))
            shutil.rmtree(place, ignore_errors=True)
            copy.rename(place)
    except Exception as error:  # each file system has errors of its own
        raise BackendError(
            f"base model {url} could not be copied: {type(error).__name__}: {error}",
            "Check the URL and its credentials, or copy it and give the directory.",
        ) from error
    return place
