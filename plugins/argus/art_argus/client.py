"""The client of an Argus server: it sends events in one POST, and reads the stop button."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import quote

import attrs
import httpx2

from art_argus.events import Event
from art_core import SinkError

log = logging.getLogger("art_core")

MAX_EVENTS = 100
_BAD_ENVELOPE, _TOO_MANY = 422, 429
_MAX_TRIES = 5
_DEFAULT_PAUSE_S, _MAX_PAUSE_S = 2.0, 60.0


@attrs.frozen(kw_only=True)
class RefusedEvent:
    """An event that the server did not take, and its reason."""

    event: Event
    reason: str


@attrs.define(kw_only=True, eq=False)
class ArgusClient:
    """Talks to one server. Raises SinkError when the events should be sent again."""

    url: str
    http: httpx2.Client = attrs.field(repr=False)
    sleep: Callable[[float], None] = time.sleep
    last_sent: float = attrs.field(factory=time.monotonic)

    @classmethod
    def to(cls, url: str, token: str | None, timeout_s: float = 15.0) -> ArgusClient:
        """Make a client of a server with an API token."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        http = httpx2.Client(base_url=url.rstrip("/"), headers=headers, timeout=timeout_s)
        return cls(url=url.rstrip("/"), http=http)

    def send(self, events: Sequence[Event]) -> list[RefusedEvent]:
        """Send events, at most 100 per POST; return those that the server refuses for good."""
        chunks = [events[at : at + MAX_EVENTS] for at in range(0, len(events), MAX_EVENTS)]
        return [refused for chunk in chunks for refused in self._send(chunk)]

    def stop_requested(self, batch_id: str) -> bool:
        """Return whether a user of Argus asked to stop a batch."""
        path = f"/api/batches/{quote(batch_id, safe='')}/stop-requested"
        answer = self._checked(self._ask("GET", path)).json()
        # The server sends `requested`; its own client reads `stop_requested`.
        return bool(answer.get("requested") or answer.get("stop_requested"))

    def close(self) -> None:
        """Close the connections."""
        self.http.close()

    def _send(self, events: Sequence[Event], *, again: bool = True) -> list[RefusedEvent]:
        answer = self._ask("POST", "/api/events/batch", json={"events": events})
        if answer.status_code == _BAD_ENVELOPE:
            return self._apart(events, answer.text)
        refused = list(_refused(events, self._checked(answer)))
        self.last_sent = time.monotonic()
        stumbled = [r.event for r in refused if again and r.reason.startswith("internal")]
        if stumbled:
            # The server failed, the events are valid: send them once more.
            final = [r for r in refused if not r.reason.startswith("internal")]
            return [*final, *self._send(stumbled, again=False)]
        return refused

    def _apart(self, events: Sequence[Event], reason: str) -> list[RefusedEvent]:
        """Send the events of a POST that failed because of one bad envelope in halves, until that
        one is found.
        """
        if len(events) == 1:
            return [RefusedEvent(event=events[0], reason=reason[:500])]
        middle = len(events) // 2
        return [*self._send(events[:middle]), *self._send(events[middle:])]

    def _ask(self, method: str, path: str, **content: Any) -> httpx2.Response:
        for _ in range(_MAX_TRIES):
            try:
                answer = self.http.request(method, path, **content)
            except httpx2.HTTPError as error:
                problem = f"no answer from Argus at {self.url} ({type(error).__name__}: {error})"
                raise SinkError(problem) from error
            if answer.status_code != _TOO_MANY:
                return answer
            self.sleep(pause_s(answer.headers.get("Retry-After")))
        raise SinkError(f"Argus at {self.url} asked {_MAX_TRIES} times in a row for fewer requests")

    def _checked(self, answer: httpx2.Response) -> httpx2.Response:
        if answer.status_code in (401, 403):
            raise SinkError(
                f"Argus at {self.url} refuses the token ({answer.status_code})",
                "Set ARGUS_TOKEN to an API token (em_live_…); a web session's is not one.",
            )
        if not answer.is_success:
            raise SinkError(
                f"Argus at {self.url} answers {answer.status_code}: {answer.text[:200]!r}",
                "Is ARGUS_URL right?" if answer.status_code < 500 else "",
            )
        return answer


def pause_s(retry_after: str | None) -> float:
    """Return the seconds to wait after a 429: those that the server requests, a minute at most."""
    try:
        requested = float(retry_after or _DEFAULT_PAUSE_S)
    except ValueError:
        requested = _DEFAULT_PAUSE_S
    return min(max(requested, 0.0), _MAX_PAUSE_S)


def _refused(events: Sequence[Event], answer: httpx2.Response) -> Iterator[RefusedEvent]:
    try:
        results = answer.json()["results"]
        reasons = {r["event_id"]: r.get("error") for r in results if r["status"] == "rejected"}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SinkError(f"not an answer of Argus: {answer.text[:200]!r}") from error
    for event in events:
        if event["event_id"] in reasons:
            yield RefusedEvent(event=event, reason=str(reasons[event["event_id"]]))
