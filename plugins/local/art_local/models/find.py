"""Find a base model by name, and check which one it is.

A name is a directory, a model of the hub, or one in a Python package.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from art_core import BaseModel
from art_core.base.errors import BackendError, ConfigError
from art_core.base.progress import line_progress
from art_local.models.packaged import PACKAGED, Packaged, write_packaged
from art_local.models.remote import URL, copy_of

log = logging.getLogger("art_local")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
HUB_PATTERNS = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
HUB_IGNORED = ["*/*", "consolidated*", "*.bin", "*.pt", "*.pth"]
HUB_TIMEOUT_S = 4.0
LOCK_TIMEOUT_S = 3600.0
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")


def cache_directory() -> Path:
    """Return the directory of converted models: `ART_CACHE`, else `art` in the user's cache."""
    if "ART_CACHE" in os.environ:
        return Path(os.environ["ART_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "art"


def resolve_base_model(
    name: str | os.PathLike[str], *, cache_dir: Path | None = None, progress: bool = True
) -> Path:
    """Return the directory of a base model, and fetch the model if it is not on this machine.

    `name` is a local directory, a URL that fsspec opens, or a model hub id. Tried in order for an
    id: the hub's local cache, our cache, the hub, and for the models in `PACKAGED` a Python package
    that contains them. Only safetensors are accepted: pickled weights can run code.

    Raises ConfigError for an invalid name or an incomplete directory, BackendError if the model
    can't be fetched.
    """
    text = os.fspath(name)
    local = Path(text).expanduser()
    if local.is_dir():
        return checked(local)
    if URL.match(text):
        return checked(copy_of(text, cache_dir or cache_directory(), problem_with))
    if local.is_absolute() or text.startswith((".", "~")) or not HUB_ID.fullmatch(text):
        raise ConfigError(
            f"no base model at {text!r}: there is no such directory",
            "Give a directory with config.json, tokenizer and safetensors, or a model hub id like "
            f"{next(iter(PACKAGED))!r}.",
        )
    return _named(text, cache_dir or cache_directory(), progress=progress)


def _named(text: str, cache: Path, *, progress: bool) -> Path:
    """Return the directory of a model that has a hub id."""
    packaged = PACKAGED.get(text)
    converted = cache / "models" / text.replace("/", "--")
    found = from_hub_cache(text) or (
        converted if packaged and problem_with(converted) is None else None
    )
    if found is not None:
        return found
    if hub_answers():
        try:
            return from_hub(text, progress=progress)
        except BackendError:
            if packaged is None:
                raise
    elif packaged is None:
        raise BackendError(
            f"base model {text!r} is not on this machine and the model hub does not "
            f"answer within {HUB_TIMEOUT_S} s",
            "Go online, set HF_ENDPOINT to a mirror, give a local directory, or use "
            f"{' or '.join(map(repr, PACKAGED))}, which also comes as a Python package.",
        )
    return _from_package(packaged, converted, progress=progress)


def problem_with(directory: Path) -> str | None:
    """Return the problem with a model directory; None if it is complete."""
    if not (directory / "config.json").is_file():
        return "config.json is missing"
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(json.loads(index.read_bytes())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            return f"{index.name} is damaged"
        missing = sorted(shard for shard in shards if not (directory / shard).is_file())
        if missing:
            return f"{len(missing)} of {len(shards)} weight files are missing, {missing[0]} first"
    elif not any(directory.glob("*.safetensors")):
        pickled = any(directory.glob("*.bin")) or any(directory.glob("*.pt"))
        return (
            "it has pickled weights only, no safetensors" if pickled else "it has no *.safetensors"
        )
    if not any((directory / file).is_file() for file in TOKENIZER_FILES):
        return "it has no tokenizer"
    return None


def checked(directory: Path) -> Path:
    """Return a model directory without symbolic links; ConfigError if it is incomplete."""
    problem = problem_with(directory)
    if problem is not None:
        raise ConfigError(
            f"{directory} is not a base model: {problem}",
            "It needs config.json, tokenizer files and *.safetensors "
            "(model.save_pretrained(...) and tokenizer.save_pretrained(...) write them).",
        )
    return directory.resolve()


def from_hub_cache(name: str) -> Path | None:
    """Return the hub's local copy of a model if it is complete."""
    from huggingface_hub import snapshot_download

    try:
        directory = Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):
        return None
    return directory if problem_with(directory) is None else None


def from_hub(name: str, *, progress: bool = True) -> Path:
    """Download a model from the hub: only safetensors, config and tokenizer."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    (enable_progress_bars if progress else disable_progress_bars)()
    try:
        directory = snapshot_download(
            name,
            allow_patterns=HUB_PATTERNS,
            ignore_patterns=HUB_IGNORED,
            etag_timeout=10,
            tqdm_class=line_progress() if progress else None,
        )
    except (OSError, ValueError) as error:
        raise BackendError(
            f"base model {name!r} could not be fetched from the model hub: "
            f"{type(error).__name__}: {error}",
            "Check the name; for a gated model accept its terms and set HF_TOKEN.",
        ) from error
    return checked(Path(directory))


def hub_answers(timeout_s: float = HUB_TIMEOUT_S) -> bool:
    """Return within `timeout_s` whether the model hub can be reached, also if DNS hangs."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    answers: list[bool] = []

    def request_head() -> None:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")  # noqa: S310
        try:
            urllib.request.urlopen(request, timeout=timeout_s).close()  # noqa: S310
        except urllib.error.HTTPError as error:
            answers.append(error.code < 500)
        except (OSError, ValueError):
            return
        else:
            answers.append(True)

    thread = threading.Thread(target=request_head, name="art-hub-probe", daemon=True)
    thread.start()
    thread.join(timeout_s)
    return bool(answers and answers[0])


def _from_package(packaged: Packaged, directory: Path, *, progress: bool) -> Path:
    """Write a packaged model into our cache, once; a second process waits for the first."""
    with locked(directory, "fetches"):
        if problem_with(directory) is not None:
            write_packaged(packaged, directory, progress=progress)
    return checked(directory)


@contextmanager
def locked(path: Path, action: str) -> Iterator[None]:
    """Lock a path against other processes inside the block. While another process holds the lock,
    wait and warn with the action; BackendError after `LOCK_TIMEOUT_S`.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.parent / f".{path.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("waiting for another process that %s %s", action, path.name)
        try:
            lock.acquire(timeout=LOCK_TIMEOUT_S)
        except Timeout:
            raise BackendError(
                f"another process has held {lock.lock_file} for {LOCK_TIMEOUT_S:.0f} s",
                "End that process and try again.",
            ) from None
    try:
        yield
    finally:
        lock.release()


class LocalCatalog:
    """The base models that the local backend knows by name, for `art models`."""

    def list(self) -> list[BaseModel]:
        """Return the models in Python packages, with the paths of those on this machine."""
        return [
            BaseModel(name=name, summary=packaged.summary, path=self._path(name))
            for name, packaged in PACKAGED.items()
        ]

    def pull(self, name: str) -> Path:
        """Fetch a model by name, hub id or directory; raises what `resolve_base_model` raises."""
        return resolve_base_model(name)

    def _path(self, name: str) -> Path | None:
        converted = cache_directory() / "models" / name.replace("/", "--")
        return from_hub_cache(name) or (converted if problem_with(converted) is None else None)


HASHED_WHOLE = 64 << 20
"""Up to this size, weights are hashed completely; of larger ones, parts of every tensor."""
SAMPLE_BYTES, SAMPLES = 4096, 3
MAX_HEADER = 100 << 20
NOT_IDENTITY = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")
"""Entries of a config about where a model was or how it is loaded, not about its identity."""

Entry = tuple[str, Path, str, list[int], int, int]
"""Name, file, dtype, shape, and the first and last byte in the file."""


@attrs.frozen(kw_only=True)
class BaseIdentity:
    """A base model: its name as the user gave it, its directory, and its fingerprint."""

    name: str
    directory: Path
    fingerprint: str

    @classmethod
    def of(cls, name: str, directory: Path) -> BaseIdentity:
        """Read a base model's fingerprint; ConfigError for weights that can't be read."""
        return cls(name=name, directory=directory, fingerprint=fingerprint(directory))

    def manifest(self) -> dict[str, Any]:
        """Return the entries for a checkpoint's manifest."""
        return {"base_model": self.name, "base_fingerprint": self.fingerprint}

    def check(self, checkpoint: Path, manifest: Mapping[str, Any]) -> None:
        """Raise ConfigError for a checkpoint that was trained over other weights. An older
        checkpoint without a fingerprint is compared by the name of its base model.
        """
        name, fingerprint = manifest.get("base_model"), manifest.get("base_fingerprint")
        if fingerprint is None and name != self.name and not _is_at(name, self.directory):
            raise ConfigError(
                f"checkpoint {checkpoint} was trained with base_model={name!r}, this run asks for "
                f"{self.name!r}",
                "Use the same options to resume, or another model name to start afresh.",
            )
        if fingerprint not in (None, self.fingerprint):
            raise ConfigError(
                f"checkpoint {checkpoint} was trained over another base model than the one at "
                f"{self.directory}: base_model was {name!r} with fingerprint {fingerprint!s:.12}, "
                f"this one has {self.fingerprint:.12}",
                "Give the base model that it was trained over, or put its files back; another "
                "model name starts afresh.",
            )

    def check_unchanged(self) -> None:
        """Raise ConfigError if the directory contains other weights by now."""
        if fingerprint(self.directory) != self.fingerprint:
            raise ConfigError(
                f"the files of base model {self.directory} were replaced since it was loaded",
                "Put them back, or close this backend and create a new one.",
            )


def fingerprint(directory: Path) -> str:
    """Return a hash of a base model's config and weights.

    It does not depend on the directory's path or on how the tensors are divided over files. It
    covers each tensor's name, dtype, shape and bytes; of large models, parts of the bytes.
    """
    digest = hashlib.sha256()
    try:
        config = _identity(json.loads((directory / "config.json").read_bytes()))
        digest.update(json.dumps(config, sort_keys=True).encode())
        tensors = sorted(t for file in weight_files(directory) for t in _tensors(file))
        whole = sum(end - start for *_, start, end in tensors) <= HASHED_WHOLE
        for name, file, dtype, shape, start, end in tensors:
            digest.update(json.dumps([name, dtype, shape]).encode())
            with file.open("rb", buffering=0) as opened:
                for first, count in [(start, end - start)] if whole else _parts(start, end):
                    digest.update(os.pread(opened.fileno(), count, first))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"the base model in {directory} can't be read: {type(error).__name__}: {error}",
            "Fetch it again, or write it again with model.save_pretrained(...).",
        ) from error
    return digest.hexdigest()


def weight_files(directory: Path) -> list[Path]:
    """Return the files that a model is loaded from."""
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        shards = json.loads(index.read_bytes())["weight_map"].values()
        return [directory / shard for shard in sorted(set(shards))]
    return sorted(directory.glob("*.safetensors"))


def _tensors(file: Path) -> Iterator[Entry]:
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > MAX_HEADER:
            raise ValueError(f"{file.name} has no header of safetensors")
        header = json.loads(opened.read(length))
    size = file.stat().st_size
    header.pop("__metadata__", None)
    for name, entry in header.items():
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        if end > size:
            raise ValueError(f"{file.name} is cut off")
        yield name, file, entry["dtype"], entry["shape"], start, end


def _parts(start: int, end: int) -> list[tuple[int, int]]:
    """Return offsets and sizes of the parts to read, spread evenly over a tensor."""
    count = min(SAMPLE_BYTES, end - start)
    room = end - start - count
    return [(start + room * part // (SAMPLES - 1), count) for part in range(SAMPLES)]


def _identity(config: Any) -> Any:
    if not isinstance(config, dict):
        return config
    return {k: _identity(value) for k, value in config.items() if k not in NOT_IDENTITY}


def _is_at(name: Any, directory: Path) -> bool:
    return isinstance(name, str) and Path(name).expanduser().resolve() == directory
