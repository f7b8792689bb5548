"""The attempts of a gateway: each has a key and a recording, ends once, and joins a group.

All attempts are kept in the order in which they began. Groups are consecutive attempts at one
scenario in this order, so that slow attempts are compared with those that began beside them.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import attrs

from art_core.base.errors import RolloutFailure, without_secrets
from art_core.client.recorder import Recording
from art_core.data.outcome import Outcome, checked
from art_core.data.trajectory import Trajectory, TrajectoryGroup, is_choice
from art_core.endpoint.errors import RequestError, shown
from art_core.endpoint.protocols.stored import StoredResponses

Status = Literal["open", "ended", "failed", "timed_out"]
_SILENT = (
    "the agent never called the model, so nothing of this attempt is trained; its reward still "
    "counts in its group: end it with a failure if the agent did not run"
)
MAX_PAST = 4_096
"""Attempts that are remembered after their group was taken, to answer late requests."""


@attrs.frozen
class Ending:
    """The end of an attempt: a reward, or the reason of a failure; metrics in both."""

    reward: float | None
    failure: str | None
    metrics: Mapping[str, float]


@attrs.define(kw_only=True, eq=False)
class Attempt:
    """One attempt of an agent. Its key is valid while its status is "open"."""

    id: str
    key: str = attrs.field(repr=False)
    scenario_id: str
    recording: Recording
    deadline: float
    status: Status = "open"
    ending: Ending | None = None
    result: Outcome | None = None

    def facts(self) -> dict[str, Any]:
        """Return what the attempt's page shows, as JSON values."""
        trajectory = self.recording.trajectory
        failure = self.result if isinstance(self.result, RolloutFailure) else None
        calls = sum(
            is_choice(item)
            for history in trajectory.histories()
            for item in history.messages_and_choices
        )
        return {
            "id": self.id,
            "scenario_id": self.scenario_id,
            "status": self.status,
            "calls": calls,
            "warning": _SILENT if self.status == "ended" and not calls else None,
            "reward": self.ending.reward if self.ending else None,
            "failure": str(failure) if failure else None,
            "metrics": dict(trajectory.metrics),
            "started_at": trajectory.start_time.isoformat(),
        }


@attrs.frozen
class _Past:
    """An attempt whose group was taken: its conversation is no longer here."""

    key: str
    ending: Ending | None
    facts: dict[str, Any]


@attrs.define(kw_only=True, eq=False)
class Attempts:
    """The open attempts, those that wait for their group, and the newest past ones. Safe under
    threads.

    An attempt that does not end within `timeout_s` seconds is a failure. At most `limit` attempts
    are open or wait for their group. `new_recording` begins to record a trajectory.
    """

    timeout_s: float
    limit: int
    new_recording: Callable[[Trajectory], Recording]
    clock: Callable[[], float] = time.monotonic
    _kept: dict[str, Attempt] = attrs.field(factory=dict, init=False)
    _open: dict[str, Attempt] = attrs.field(factory=dict, init=False)
    _past: OrderedDict[str, _Past] = attrs.field(factory=OrderedDict, init=False)
    _ids: dict[str, str] = attrs.field(factory=dict, init=False)
    _changed: list[Callable[[], None]] = attrs.field(factory=list, init=False)
    _lock: threading.RLock = attrs.field(factory=threading.RLock, init=False)

    def begin(self, scenario_id: str, metadata: Mapping[str, Any]) -> Attempt:
        """Begin an attempt; RequestError (503) if there are too many."""
        with self._expired():
            if len(self._kept) >= self.limit:
                reason = (
                    f"{len(self._kept)} attempts are open or wait for the trainer, which is the "
                    "limit (max_attempts); end attempts, or try again when a step is trained"
                )
                raise RequestError(503, reason, None, "too_many_attempts")
            attempt = Attempt(
                id=secrets.token_hex(12),
                key=secrets.token_urlsafe(32),
                scenario_id=scenario_id,
                recording=self.new_recording(Trajectory(metadata=dict(metadata))),
                deadline=self.clock() + self.timeout_s,
            )
            self._kept[attempt.id] = self._open[attempt.id] = attempt
            self._ids[attempt.key] = attempt.id
            self.notify()  # there is a new deadline to wait for
            return attempt

    def recording_of(self, key: str) -> Recording:
        """Return the recording of an open attempt's key; RequestError (401) for any other key."""
        with self._expired():
            attempt_id = self._ids.get(key, "")
            if attempt_id in self._open:
                return self._open[attempt_id].recording
            if not attempt_id:
                reason = "no attempt has this key; POST /attempts begins one and returns its key"
                raise RequestError(401, reason)
            status = self.facts(attempt_id)["status"]
            raise RequestError(401, f"attempt {attempt_id} is over ({status}), and so is its key")

    def facts(self, attempt_id: str) -> dict[str, Any]:
        """Return the facts of an attempt; RequestError (404) if it is not known."""
        with self._expired():
            if attempt_id in self._kept:
                return self._kept[attempt_id].facts()
            if attempt_id in self._past:
                return self._past[attempt_id].facts
            reason = f"no attempt {shown(attempt_id)}; the newest {MAX_PAST} past ones are known"
            raise RequestError(404, reason)

    def listed(self) -> list[dict[str, Any]]:
        """Return the facts of the attempts that are open or wait for their group."""
        with self._expired():
            return [attempt.facts() for attempt in self._kept.values()]

    def measure(
        self, attempt_id: str, metrics: Mapping[str, float], check: Callable[[Trajectory], None]
    ) -> dict[str, Any]:
        """Add metrics to an open attempt; RequestError (409) if it is over. `check` raises for
        metrics that cannot be logged.
        """
        with self._expired():
            attempt = self._open.get(attempt_id)
            if attempt is None:
                status = self.facts(attempt_id)["status"]
                raise RequestError(409, f"attempt {attempt_id} is over ({status})")
            self._add(attempt, metrics, check)
            return attempt.facts()

    def end(
        self, attempt_id: str, ending: Ending, check: Callable[[Trajectory], None]
    ) -> dict[str, Any]:
        """End an attempt; the same end again changes nothing, and another one is a RequestError
        (409).
        """
        with self._expired():
            attempt = self._open.get(attempt_id)
            if attempt is not None:
                self._add(attempt, ending.metrics, check)
                attempt.ending = ending
                self._close(attempt, *_result(attempt, ending))
                return attempt.facts()
            facts = self.facts(attempt_id)
            if self._ending(attempt_id) == ending:
                return facts
            reason = f"attempt {attempt_id} is over ({facts['status']}) with another end"
            raise RequestError(409, reason)

    def take(self, size: int, scenario_id: str | None = None) -> TrajectoryGroup | None:
        """Return the oldest group of `size` attempts that are over, and forget them; None if there
        is none. A smaller group is taken when no attempt has joined it for `timeout_s` seconds.
        """
        with self._expired():
            for attempts in self._groups(size, scenario_id):
                if all(each.result is not None for each in attempts) and (
                    len(attempts) == size or attempts[-1].deadline <= self.clock()
                ):
                    return self._taken(attempts)
        return None

    def seconds_left(self) -> float | None:
        """Return the seconds until the next attempt is late, or the next small group is taken; None
        if there is no attempt.
        """
        with self._lock:
            now = self.clock()
            left = [each.deadline - now for each in self._kept.values() if each.deadline > now]
        return min(left, default=None)

    @contextmanager
    def calling(self, changed: Callable[[], None]) -> Iterator[None]:
        """Call a function after each beginning and end of an attempt while the block runs."""
        with self._lock:
            self._changed.append(changed)
        try:
            yield
        finally:
            with self._lock:
                self._changed.remove(changed)

    def notify(self) -> None:
        """Call the functions of `calling`."""
        with self._lock:
            for changed in self._changed:
                changed()

    @contextmanager
    def _expired(self) -> Iterator[None]:
        """Hold the lock; late attempts have failed before the block runs."""
        with self._lock:
            now = self.clock()
            late = []
            for attempt in self._open.values():  # in the order of their deadlines
                if attempt.deadline > now:
                    break
                late.append(attempt)
            for attempt in late:
                failure = RolloutFailure(
                    reason="timeout",
                    type="TimeoutError",
                    message=f"the attempt did not end within {self.timeout_s:g} s",
                )
                self._close(attempt, "timed_out", failure)
            yield

    def _add(
        self, attempt: Attempt, metrics: Mapping[str, float], check: Callable[[Trajectory], None]
    ) -> None:
        merged = {**attempt.recording.trajectory.metrics, **metrics}
        check(Trajectory(metrics=merged))
        attempt.recording.trajectory.metrics = merged

    def _close(self, attempt: Attempt, status: Status, result: Outcome) -> None:
        attempt.recording.end()
        attempt.recording.stored = StoredResponses()  # they may be large
        attempt.status, attempt.result = status, result
        del self._open[attempt.id]
        self.notify()

    def _ending(self, attempt_id: str) -> Ending | None:
        kept = self._kept.get(attempt_id) or self._past[attempt_id]
        return kept.ending

    def _groups(self, size: int, scenario_id: str | None) -> Iterator[list[Attempt]]:
        of_scenarios: dict[str, list[Attempt]] = {}
        for attempt in self._kept.values():
            of_scenarios.setdefault(attempt.scenario_id, []).append(attempt)
        for name, attempts in of_scenarios.items():
            if scenario_id in (None, name):
                yield from (attempts[i : i + size] for i in range(0, len(attempts), size))

    def _taken(self, attempts: list[Attempt]) -> TrajectoryGroup:
        results = [each.result for each in attempts if each.result is not None]
        for attempt in attempts:
            del self._kept[attempt.id]
            self._past[attempt.id] = _Past(attempt.key, attempt.ending, attempt.facts())
        while len(self._past) > MAX_PAST:
            del self._ids[self._past.popitem(last=False)[1].key]
        return TrajectoryGroup(results, metadata={"scenario_id": attempts[0].scenario_id})


def _result(attempt: Attempt, ending: Ending) -> tuple[Status, Outcome]:
    trajectory = attempt.recording.trajectory
    if attempt.recording.exceeded is not None:
        return "failed", RolloutFailure.of(attempt.recording.exceeded)
    if ending.reward is None:
        message = without_secrets(ending.failure or "no reason was given")
        return "failed", RolloutFailure(reason="raised", type="AttemptFailed", message=message)
    trajectory.reward = ending.reward
    return "ended", checked(trajectory, trajectory.start_time)
