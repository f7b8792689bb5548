"""JSON files that are whole or absent, JSON lines that hold any value, valid names of directories,
and file descriptors that forked children close.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from weakref import WeakSet

import orjson

from art_core.base.errors import ConfigError

if TYPE_CHECKING:
    import socket

_MAX_NAME = 128
"""Bytes of the name of a directory."""


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
    replace_bytes(path, data, sync=sync)


def replace_bytes(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Replace a file whole; on any failure, such as a full disk, the old content stays."""
    with replacing(path, sync=sync) as file:
        file.write(data)


@contextmanager
def replacing(path: Path, *, sync: bool = False) -> Iterator[BinaryIO]:
    """Open a file beside a path; it takes the path's place when the block ends, and is deleted when
    the block raises. `sync` waits until the disk has it.
    """
    # Not tempfile: only the owner can read its files, and a team reads each other's runs.
    aside = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:12]}.tmp")
    try:
        with aside.open("xb") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


_LEFTOVER = re.compile(r"\..+\.(?:(\d+)-)?[0-9a-f]{12}\.tmp")


def sweep_leftovers(*directories: Path) -> None:
    """Delete the files that `replace_json` had begun in processes that were killed."""
    for directory in directories:
        with suppress(OSError):
            for path in list(directory.iterdir()):
                found = _LEFTOVER.fullmatch(path.name)
                if found and not _is_alive(found[1]):
                    path.unlink(missing_ok=True)


def _is_alive(pid: str | None) -> bool:
    """Return whether a process runs. Files of earlier releases have no id: False."""
    if pid is None:
        return False
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # it is another user's
    return True


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, an empty one if the file is missing; ConfigError for other content."""
    try:
        value = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"{path} is not JSON: {error}", "Mend or delete it.") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds no JSON object", "Mend or delete it.")
    return value


_OPTIONS = orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
_DEEPEST = 100


def json_line(stored: Mapping[str, Any]) -> bytes:
    """Return values as one line of JSON. Values that JSON cannot hold are stored as text."""
    try:
        return orjson.dumps(stored, default=_plain, option=_OPTIONS)
    except TypeError:
        return orjson.dumps(_cleaned(stored), default=_plain, option=_OPTIONS)


def _plain(value: Any) -> Any:
    """Return JSON for a value that JSON has no form for: a similar value, its text, or its type."""
    try:
        return _near(value)
    except Exception:
        return _shown(value)


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except Exception:
        return f"<{type(value).__name__}>"


def _near(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json", warnings=False)
    if isinstance(value, Decimal | Fraction):
        return float(value)
    if isinstance(value, set | frozenset):
        return list(value)
    return value.tolist() if hasattr(value, "tolist") else repr(value)


def _cleaned(value: Any, depth: int = 0) -> Any:
    """Return values without the keys, integers, surrogates and depths that orjson refuses."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if depth < _DEEPEST and isinstance(value, Mapping):
        keys = (_cleaned(k if isinstance(k, str) else _shown(k)) for k in value)
        return {k: _cleaned(v, depth + 1) for k, v in zip(keys, value.values(), strict=True)}
    if depth < _DEEPEST and isinstance(value, list | tuple | set | frozenset):
        return [_cleaned(v, depth + 1) for v in value]
    try:
        orjson.dumps(value, default=_plain, option=_OPTIONS)
    except TypeError:
        return _cleaned(_shown(value))
    return value


# A forked child has a copy of each descriptor. A lock of `flock`, a port and the end of a socket
# are free only when all copies are closed, so each child closes its own as it begins.
_sockets: WeakSet[socket.socket] = WeakSet()
_kept: dict[int, tuple[int, int]] = {}
"""The identity of each file, by its descriptor: a descriptor may be reused for another file."""


def close_in_children(fd: int) -> None:
    """Have children that are forked from now on close a descriptor."""
    _kept[fd] = _identity(fd)


def close_socket_in_children(opened: socket.socket) -> None:
    """Have children that are forked from now on close a socket."""
    _sockets.add(opened)


def take_lock(fd: int, *, shared: bool = False, tries: int = 1) -> bool:
    """Lock the file of a descriptor; return False if another process has it locked. Several tries
    are 20 ms apart.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    for rest in reversed(range(tries)):
        with suppress(OSError):
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
            return True
        if rest:
            time.sleep(0.02)
    return False


def close_lock(fd: int) -> None:
    """Free the lock of a descriptor for all processes, and close it."""
    _kept.pop(fd, None)
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _close_all() -> None:
    for fd, identity in _kept.items():
        with suppress(OSError):
            if _identity(fd) == identity:
                os.close(fd)
    _kept.clear()
    for opened in list(_sockets):
        # Not `close`, which waits for files that were made of the socket.
        fd = opened.detach()
        with suppress(OSError):
            os.close(fd)
    _sockets.clear()


os.register_at_fork(after_in_child=_close_all)


def checked_name(kind: str, name: str) -> str:
    """Return a project's or model's name; ConfigError if it can't be the name of one directory."""
    bad = (
        not isinstance(name, str)
        or not name.strip()
        or name != name.strip()
        or name.startswith(".")
        or any(c in "/\\:" or not c.isprintable() for c in name)
        or len(name.encode()) > _MAX_NAME
    )
    if bad:
        raise ConfigError(
            f"{kind} name {name!r:.80} can't be a directory's name",
            f"Use letters, digits, '-', '_', '.' and spaces inside, {_MAX_NAME} bytes at most, "
            "not beginning with '.'.",
        )
    return name
