"""Descriptors that end with the process that opened them, also while forked children live.

A forked child has a copy of each descriptor. A lock of `flock`, a port and the end of a socket are
free only when all copies are closed, so each child closes its own as it begins.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from typing import TYPE_CHECKING
from weakref import WeakSet

if TYPE_CHECKING:
    import socket

_sockets: WeakSet[socket.socket] = WeakSet()
_kept: dict[int, tuple[int, int]] = {}
"""The identity of each file, by its descriptor: a number may have been given to another file."""


def close_in_children(fd: int) -> None:
    """Have children that are forked from now on close a descriptor."""
    _kept[fd] = _identity(fd)


def close_socket_in_children(opened: socket.socket) -> None:
    """Have children that are forked from now on close a socket."""
    _sockets.add(opened)


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
