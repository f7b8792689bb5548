"""The machine of an attempt, and the archives by which files reach it."""

from __future__ import annotations

import io
import tarfile
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import art_core as art


class Machine(Protocol):
    """The computer of one attempt: what a command changes is there for the next.

    What goes wrong with the machine itself is an `art.InfrastructureError`.
    """

    @abstractmethod
    async def run(
        self, command: str, *, seconds: float, env: Mapping[str, str] | None = None, user: str = ""
    ) -> art.SandboxResult:
        """Run a command in bash, in the working directory; kill it after its time."""

    @abstractmethod
    async def put(self, place: str, packed: bytes) -> None:
        """Unpack an archive into a directory, which is made if it is not there."""

    @abstractmethod
    async def get(self, path: str) -> bytes | None:
        """Return a file or a directory as an archive, by its last name; None if there is none."""

    @abstractmethod
    async def close(self) -> None:
        """Release the machine; a second call does nothing."""


def pack(folder: Path) -> bytes:
    """Return the files of a directory as a tar archive, without the directory itself."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, arcname=path.name)
    return buffer.getvalue()


def unpack_file(packed: bytes) -> bytes:
    """Return the content of an archive's only file; b"" if it is no file."""
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        for member in archive:
            found = archive.extractfile(member) if member.isfile() else None
            return found.read() if found else b""
    return b""
