"""The runs on the page: found below directories, with what is known of each."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import attrs

from art_core import ConfigError, LoggedRun, open_run
from art_core.reports.board import Place, read_place, runs_in
from art_core.reports.follow import Follower

T = TypeVar("T")
_FOLLOWED = 8
WHOLE_BYTES = 32 << 20
"""Of logs up to this size all curves are read at once; of larger ones, those that are shown."""


@attrs.frozen(kw_only=True)
class Listed:
    """A run on the list; `place` is None if it can't be read, and `problem` has the reason."""

    id: str
    run: LoggedRun
    status: str
    place: Place | None
    problem: str | None = None
    reason: str | None = None


def run_id(run: LoggedRun) -> str:
    """Return the name of a run in addresses, made of its path."""
    return hashlib.sha256(os.fsencode(run.path.resolve())).hexdigest()[:16]


@attrs.define(eq=False)
class Library:
    """The runs below some directories. Summaries and logs are read again when they changed.

    Raises ConfigError for a directory that does not exist.
    """

    directories: Sequence[Path]
    taxonomy: Any
    _found: dict[str, LoggedRun] = attrs.field(factory=dict)
    _places: dict[str, tuple[tuple[int, int], str, Place]] = attrs.field(factory=dict)
    _followers: OrderedDict[str, tuple[Follower, Any]] = attrs.field(factory=OrderedDict)
    _lock: Any = attrs.field(factory=threading.Lock)

    def runs(self) -> dict[str, LoggedRun]:
        """Return the runs by id, as they are now."""
        found: list[LoggedRun] = []
        for directory in self.directories:
            if os.path.lexists(directory / "history.jsonl"):
                found.append(attrs.evolve(open_run(directory), taxonomy=self.taxonomy))
            else:
                found += runs_in([directory], self.taxonomy)
        self._found = {run_id(run): run for run in found}
        return self._found

    def run(self, name: str) -> LoggedRun:
        """Return the run of an id; LookupError if there is none."""
        run = self._found.get(name) or self.runs().get(name)
        if run is None:
            raise LookupError(f"no run {name!r}; it may have been deleted or moved")
        return run

    def listed(self) -> list[Listed]:
        """Return all runs, by their summaries."""
        return [self.entry(name, run) for name, run in self.runs().items()]

    def entry(self, name: str, run: LoggedRun) -> Listed:
        """Return a run with what its summary holds."""
        state = run.state()
        place, problem, status = None, state.problem, state.status
        if status != "unreadable":
            try:
                place = self._place(name, run, status)
            except Exception as error:
                status, problem = "unreadable", f"{type(error).__name__}: {error}"
        return Listed(
            id=name, run=run, status=status, place=place, problem=problem, reason=state.reason
        )

    def _place(self, name: str, run: LoggedRun, status: str) -> Place:
        stat = run.history.stat()
        mark = (stat.st_size, stat.st_mtime_ns)
        known = self._places.get(name)
        if known is not None and known[:2] == (mark, status):
            return known[2]
        place = read_place(run, status)
        self._places[name] = (mark, status, place)
        return place

    def read(self, name: str, keys: Iterable[str], use: Callable[[Follower], T]) -> T:
        """Return `use` of the follower of a run, which has read these metrics."""
        run = self.run(name)
        with self._lock:
            follower, lock = self._followers.pop(name, (Follower(run), threading.Lock()))
            self._followers[name] = (follower, lock)
            if len(self._followers) > _FOLLOWED:
                self._followers.popitem(last=False)
        wanted = set(keys)
        with suppress(OSError, ConfigError):
            if run.history.stat().st_size <= WHOLE_BYTES:
                place = self._place(name, run, run.status())
                wanted.update(place.summary.metrics)
        with lock:
            follower.read(wanted)
            return use(follower)
