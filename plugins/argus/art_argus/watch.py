"""What goes on between rows: signs of life, and a look at the stop button."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import attrs

from art_argus.client import ArgusClient
from art_argus.events import heartbeat
from art_argus.job import Job
from art_core import SinkError

log = logging.getLogger("art_core")


@attrs.define(kw_only=True, eq=False)
class Watch:
    """A thread that looks every `every_s`; whatever fails is tried again at the next look."""

    client: ArgusClient
    job: Job
    flag: Path
    heartbeat_s: float
    every_s: float
    _closing: threading.Event = attrs.field(factory=threading.Event, init=False)
    _thread: threading.Thread = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.flag.unlink(missing_ok=True)
        self._thread = threading.Thread(target=self._watch, name="art-argus-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._closing.set()
        self._thread.join(timeout=1.0)

    def look(self) -> None:
        """Send a sign of life if nothing else was sent for long; note a request to stop."""
        if time.monotonic() - self.client.last_sent >= self.heartbeat_s:
            self.client.send([heartbeat(self.job, datetime.now(UTC))])
        if not self.flag.exists() and self.client.stop_requested(self.job.batch_id):
            self.flag.parent.mkdir(parents=True, exist_ok=True)
            self.flag.touch()
            log.warning("somebody asked Argus to stop %r; see stop_requested", self.job.batch_id)

    def _watch(self) -> None:
        while not self._closing.wait(min(self.every_s, self.heartbeat_s)):
            with contextlib.suppress(SinkError, OSError, ValueError, AttributeError):
                self.look()
