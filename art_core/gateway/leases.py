"""The recordings of leased attempts: the key of a lease is that of its calls to the model."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

import attrs

from art_core.base.errors import RolloutFailure
from art_core.client.recorder import Recording
from art_core.data.trajectory import Trajectory
from art_core.endpoint.errors import RequestError

LOST = (
    "this server does not have the calls of the attempt: it has started again since the lease, or "
    "the lease is over; lease another one"
)


@attrs.define(kw_only=True, eq=False)
class LeaseRecordings:
    """Records the calls of leased attempts, of at most `limit` at a time. Safe under threads.

    `is_leased` returns whether a key has an open lease. Such a key that is not known here was
    leased before the server started again: its calls are answered, and not kept.
    """

    limit: int
    new_recording: Callable[[Trajectory], Recording]
    is_leased: Callable[[str], bool]
    _kept: OrderedDict[str, Recording] = attrs.field(factory=OrderedDict, init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)

    def begin(self, key: str) -> None:
        """Begin to record the calls of a lease."""
        with self._lock:
            self._kept[key] = self.new_recording(Trajectory())
            while len(self._kept) > self.limit:
                self._kept.popitem(last=False)

    def recording_of(self, key: str) -> Recording | None:
        """Return the recording of a key, None for a key that has no lease."""
        with self._lock:
            kept = self._kept.get(key)
        if kept is None and self.is_leased(key):
            return self.new_recording(Trajectory())
        return kept

    def ended(self, key: str) -> Trajectory:
        """Return the trajectory of a lease, recorded until now; RequestError (409) if its calls
        are not here.
        """
        with self._lock:
            recording = self._kept.get(key)
        if recording is None:
            raise RequestError(409, LOST, "key")
        recording.end()
        return recording.trajectory

    def refusal(self, key: str) -> RolloutFailure | None:
        """Return the failure of an attempt whose budget refused a call; None if none did."""
        with self._lock:
            recording = self._kept.get(key)
        if recording is None or recording.exceeded is None:
            return None
        return RolloutFailure.of(recording.exceeded)

    def forget(self, key: str) -> None:
        """Forget the calls of a lease."""
        with self._lock:
            self._kept.pop(key, None)
