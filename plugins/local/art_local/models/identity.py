"""The identity of a base model: a fingerprint of its config and weights."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from art_core.base.errors import ConfigError

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
