"""Sessions: a client's models and samplers, which end when the client is no longer heard."""

from __future__ import annotations

import datetime as dt
import secrets
import time
from typing import Any

import attrs

from art_core.endpoint.errors import RequestError
from art_serverless.tinker_api.checkpoints import now

MAX_SESSIONS = 1000


@attrs.define(kw_only=True, eq=False)
class Session:
    """A client, the runs and samplers that it made, and when it was last heard."""

    id: str
    user_metadata: dict[str, Any]
    display_name: str | None = None
    created: dt.datetime = attrs.field(factory=now)
    heard: float = attrs.field(factory=time.monotonic)
    runs: list[str] = attrs.field(factory=list)
    samplers: list[str] = attrs.field(factory=list)

    def about(self) -> dict[str, Any]:
        """Return the session as the SDK describes it."""
        return {
            "training_run_ids": self.runs,
            "sampler_ids": self.samplers,
            "user_metadata": {key: str(value) for key, value in self.user_metadata.items()},
            "display_name": self.display_name,
        }


class Sessions:
    """The sessions that have not ended."""

    def __init__(self) -> None:
        self._open: dict[str, Session] = {}

    def begin(self, metadata: dict[str, Any] | None, display_name: str | None) -> Session:
        """Begin a session; RequestError (429) if there are too many."""
        if len(self._open) >= MAX_SESSIONS:
            raise RequestError(429, f"{MAX_SESSIONS} sessions are open; close one")
        session_id = f"{now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        session = Session(id=session_id, user_metadata=metadata or {}, display_name=display_name)
        self._open[session_id] = session
        return session

    def get(self, session_id: str) -> Session:
        """Return a session and note that it was heard; RequestError (410) if it has ended."""
        session = self._open.get(session_id)
        if session is None:
            raise RequestError(
                410,
                f"session {session_id!r:.200} has ended, or the server was restarted; begin "
                "another one",
            )
        session.heard = time.monotonic()
        return session

    def silent(self, for_s: float) -> list[str]:
        """Return the sessions that were not heard for so many seconds."""
        limit = time.monotonic() - for_s
        return [session.id for session in self._open.values() if session.heard < limit]

    def pop(self, session_id: str) -> Session | None:
        """Remove a session; None if it has ended before."""
        return self._open.pop(session_id, None)

    @property
    def ids(self) -> list[str]:
        """All sessions, the newest first."""
        return list(reversed(self._open))
