"""The sink opens a batch, sends each row as a point, and closes the batch with the results."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import attrs

from art_argus.client import MAX_EVENTS, ArgusClient, RefusedEvent
from art_argus.events import Event, Job, ended, heartbeat, point, started
from art_argus.plugin import flag_of
from art_argus.summary import Summary
from art_core import CurrentLine, MetricsRow, RunInfo, SinkError

log = logging.getLogger("art_core")


@attrs.define(kw_only=True, eq=False)
class ArgusSink:
    """Sends a run's rows to an Argus server. Events that the server refuses for good are stored in
    `sinks/argus.refused.jsonl` of the run, with the reason.
    """

    client: ArgusClient
    task: str | None = None
    heartbeat_s: float = 240.0
    stop_poll_s: float = 10.0
    _opened: _Opened | None = attrs.field(default=None, init=False)

    def open(self, run: RunInfo) -> None:
        """Send the events that open the run, and watch the stop button."""
        if self._opened is not None:
            self._opened.watch.close()
        job = Job.of(run, self.task)
        summary = Summary.of_log(run)
        aside = run.run_dir / "sinks" / "argus.refused.jsonl"
        self._send(started(job, run, summary.first_at or datetime.now(UTC)), aside)
        watch = Watch(
            client=self.client,
            job=job,
            flag=flag_of(run),
            heartbeat_s=self.heartbeat_s,
            every_s=self.stop_poll_s,
        )
        self._opened = _Opened(run=run, job=job, summary=summary, aside=aside, watch=watch)

    def write(self, rows: Sequence[MetricsRow]) -> None:
        """Send rows; rows that were sent before are left out."""
        assert self._opened is not None
        opened = self._opened
        opened.summary.add(rows)
        fresh = [row for row in rows if not 0 < row.seq <= opened.sent]
        for at in range(0, len(fresh), MAX_EVENTS):
            chunk = fresh[at : at + MAX_EVENTS]
            self._send([opened.event(row) for row in chunk], opened.aside)
            opened.sent = chunk[-1].seq

    def close(self, run: RunInfo) -> None:
        """Send the events that close the run, with its last metrics."""
        if self._opened is None:
            return
        opened = self._opened
        opened.watch.close()
        self._send(ended(opened.job, run, opened.summary, datetime.now(UTC)), opened.aside)
        self._opened = None
        self.client.close()

    def _send(self, events: Sequence[Event], aside: Path) -> None:
        for refused in self.client.send(events):
            _set_aside(refused, aside)


@attrs.define(kw_only=True)
class _Opened:
    run: RunInfo
    job: Job
    summary: Summary
    aside: Path
    watch: Watch
    sent: int = 0
    loss_at: int = -1
    line: CurrentLine = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.line = CurrentLine(self.run)

    def event(self, row: MetricsRow) -> Event:
        """Return the event of a row: the values of its step after it.

        Another train row of a step is another epoch only if it has the step's loss.
        """
        change = self.line.change(row)
        brings_loss = "loss/train" in row.metrics and self.loss_at != row.step
        if brings_loss:
            self.loss_at = row.step
        shown = attrs.evolve(row, metrics=dict(change.values.get(row.step, {})))
        is_epoch = change.trains or brings_loss
        return point(self.job, shown, self.run.taxonomy.is_count, is_epoch=is_epoch)


def _set_aside(refused: RefusedEvent, aside: Path) -> None:
    kind = refused.event["event_type"]
    log.warning("Argus refused a %s, which is set aside in %s: %s", kind, aside, refused.reason)
    aside.parent.mkdir(parents=True, exist_ok=True)
    with aside.open("a", encoding="utf-8") as file:
        file.write(json.dumps(attrs.asdict(refused)) + "\n")


log = logging.getLogger("art_core")


@attrs.define(kw_only=True, eq=False)
class Watch:
    """A thread that sends heartbeats and reads the stop button every `every_s`; after an error it
    goes on.
    """

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
        """End the thread."""
        self._closing.set()
        self._thread.join(timeout=1.0)

    def look(self) -> None:
        """Send a heartbeat if nothing else was sent for long; make the flag if a stop was
        requested.
        """
        if time.monotonic() - self.client.last_sent >= self.heartbeat_s:
            self.client.send([heartbeat(self.job, datetime.now(UTC))])
        if not self.flag.exists() and self.client.stop_requested(self.job.batch_id):
            self.flag.parent.mkdir(parents=True, exist_ok=True)
            self.flag.touch()
            log.warning("a user of Argus asked to stop %r; see stop_requested", self.job.batch_id)

    def _watch(self) -> None:
        while not self._closing.wait(min(self.every_s, self.heartbeat_s)):
            with contextlib.suppress(SinkError, OSError, ValueError, AttributeError):
                self.look()
