"""The runs that are open in this process, found by the identity of their logs."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import attrs

from art_core.log.history import file_identity


class Locked(Protocol):
    """What a run does in a forked process."""

    def renew_lock(self) -> None:
        """Free the lock: the thread that held it is not in the child."""


R = TypeVar("R", bound=Locked)


@attrs.define(eq=False)
class OpenRuns(Generic[R]):
    """Open runs by the identity of their logs. Hold `lock` while a run is opened."""

    lock: threading.RLock = attrs.field(factory=threading.RLock)
    _runs: dict[tuple[int, int], R] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        os.register_at_fork(after_in_child=self.leave_to_the_parent)

    def at(self, path: Path) -> R | None:
        """Return the run that has a log open, by whatever path it was opened."""
        try:
            return self._runs.get(file_identity(path.stat()))
        except OSError:
            return None

    def add(self, identity: tuple[int, int], run: R) -> None:
        """Add the run of a log."""
        self._runs[identity] = run

    def remove(self, run: R) -> None:
        """Remove a run, if it is there."""
        for identity in [key for key, other in list(self._runs.items()) if other is run]:
            del self._runs[identity]

    def leave_to_the_parent(self) -> None:
        """Forget the runs in a forked process, and locks that other threads held."""
        self.lock = threading.RLock()
        for run in self._runs.values():
            run.renew_lock()
        self._runs.clear()
