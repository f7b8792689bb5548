"""The sink: opens a batch, sends each row as a point, closes with the results."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import attrs

from art_argus.client import MOST_EVENTS, ArgusClient, Refused
from art_argus.events import Event, ended, point, started
from art_argus.job import Job
from art_argus.stop import flag_of
from art_argus.summary import Summary
from art_argus.watch import Watch
from art_core import CurrentLine, MetricsRow, RunInfo

log = logging.getLogger("art_core")


@attrs.define(kw_only=True, eq=False)
class ArgusSink:
    """Sends a run's rows to an Argus server. What the server refuses for good is set aside in
    `sinks/argus.refused.jsonl` of the run, with the reason.
    """

    client: ArgusClient
    task: str | None = None
    heartbeat_s: float = 240.0
    stop_poll_s: float = 10.0
    _opened: _Opened | None = attrs.field(default=None, init=False)

    def open(self, run: RunInfo) -> None:
        """Send that the run begins or goes on, and watch the stop button."""
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
        for at in range(0, len(fresh), MOST_EVENTS):
            chunk = fresh[at : at + MOST_EVENTS]
            self._send([opened.event(row) for row in chunk], opened.aside)
            opened.sent = chunk[-1].seq

    def close(self, run: RunInfo) -> None:
        """Send the results, or that the run failed, with its last metrics either way."""
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
        """Return what is sent of a row: the values of its step as they are after it.

        A further train row of a step is no other epoch, unless it brings the step's loss.
        """
        change = self.line.change(row)
        brings_loss = "loss/train" in row.metrics and self.loss_at != row.step
        if brings_loss:
            self.loss_at = row.step
        shown = attrs.evolve(row, metrics=dict(change.values.get(row.step, {})))
        is_epoch = change.trains or brings_loss
        return point(self.job, shown, self.run.taxonomy.is_count, is_epoch=is_epoch)


def _set_aside(refused: Refused, aside: Path) -> None:
    kind = refused.event["event_type"]
    log.warning("Argus refused a %s, which is set aside in %s: %s", kind, aside, refused.reason)
    aside.parent.mkdir(parents=True, exist_ok=True)
    with aside.open("a", encoding="utf-8") as file:
        file.write(json.dumps(attrs.asdict(refused)) + "\n")
