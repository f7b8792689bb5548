"""Places for an export: a directory, any fsspec URL, a repository of the model hub."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from art_core.base.errors import BackendError, ConfigError
from art_local.models.remote import URL, opened

HUB = "hub:"


class NotSentError(BackendError):
    """An export was written and not sent; its files are kept on this machine."""


@contextmanager
def destination(to: str) -> Iterator[Path]:
    """Give an empty directory; when the block ends, its files are at `to`, all or none of them.

    Raises ConfigError for a place that is taken, unknown or without access, BackendError if the
    files can't be written, NotSentError if they can't be sent.
    """
    if to.startswith(HUB):
        put, parent = _hub(to.removeprefix(HUB)), None
    elif URL.match(to):
        put, parent = _url(to), None
    else:
        put, parent = _directory(Path(to).expanduser())
    # on the disk that it will stay on, so that a full one is found before anything is moved
    prefix = "art-export-" if parent is None else ".tmp-export-"
    scratch, kept = Path(tempfile.mkdtemp(prefix=prefix, dir=parent)), False
    try:
        written = scratch / "model"
        written.mkdir()
        try:
            yield written
            put(written)
        except NotSentError:
            kept = True
            raise
        except OSError as error:
            raise BackendError(
                f"the export to {to} was not written: {error}",
                "Free disk space or choose another place; nothing of it stays there.",
            ) from error
    finally:
        if not kept:
            shutil.rmtree(scratch, ignore_errors=True)


def _directory(place: Path) -> tuple[Any, Path]:
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise ConfigError(
            f"{place} exists and is not an empty directory", "Choose another place, or remove it."
        )
    place.parent.mkdir(parents=True, exist_ok=True)

    def put(written: Path) -> None:
        if place.exists():
            place.rmdir()
        written.rename(place)

    return put, place.parent


def _url(url: str) -> Any:
    files, path = opened(url)
    if files.exists(path) and (files.isfile(path) or files.ls(path)):
        raise ConfigError(f"{url} exists and is not empty", "Choose another place, or remove it.")

    def put(written: Path) -> None:
        try:
            files.put(f"{written}/", path, recursive=True)
        except Exception as error:
            if files.exists(path):
                files.rm(path, recursive=True)
            raise NotSentError(
                f"the export could not be sent to {url}: {error}", f"It is kept in {written}."
            ) from error

    return put


def _hub(name: str) -> Any:
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(f"hub:{name} is no name of a repository: {error}") from error
    if not get_token():
        raise ConfigError(
            f"hub:{name} needs a token with write access, and there is none",
            "Set HF_TOKEN, or run `hf auth login`.",
        )
    api = HfApi()

    def put(written: Path) -> None:
        try:
            api.create_repo(name, private=True, exist_ok=True)
            api.upload_folder(repo_id=name, folder_path=written)
        except Exception as error:  # HTTP, or a network that is not there
            raise NotSentError(
                _refusal(name, error),
                f"The export is kept in {written}; send it with: hf upload {name} {written}",
            ) from error

    return put


def _refusal(name: str, error: Exception) -> str:
    """Return in one sentence why the hub did not take an export."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    reason = (getattr(error, "server_message", None) or str(error)).strip().partition("\n")[0]
    if status == 401:
        return f"the hub does not accept the token in HF_TOKEN (401, {reason.rstrip('.')})"
    if status == 403:
        return f"the token in HF_TOKEN may not write to {name} (403, {reason.rstrip('.')})"
    return f"the hub did not take {name}: {type(error).__name__}: {reason}"
