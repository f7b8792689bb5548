"""Rows as scalars in TensorBoard's event files; neither TensorFlow nor torch is needed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import attrs
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from art_core import MetricsRow, RunInfo


@attrs.define(eq=False)
class TensorboardSink:
    """Writes each metric as a scalar at the row's step and time; TensorBoard keeps 32-bit floats.

    A row that comes again has the same step and wall time, and so lies on its first point. The
    first trained row of a resumed attempt replaces what earlier attempts wrote from its step on.
    """

    logdir: str | Path | None = None
    _run: RunInfo | None = None
    _writer: EventFileWriter | None = None
    _last_seq: int = 0
    _furthest: MetricsRow | None = None
    _resumed: int = 1

    def open(self, run: RunInfo) -> None:
        """Begin an event file; each attempt has its own, in the same directory."""
        self._run = run
        self._writer = self._begin()

    def write(self, rows: Sequence[MetricsRow]) -> None:
        """Write rows and wait until they are in the file."""
        writer, self._writer = self._writer or self._begin(), None
        try:
            for row in rows:
                if row.seq > self._last_seq or not row.seq:
                    self._add(writer, row)
            writer.flush()
        except Exception:
            # It would repeat its first error for ever, and its file may end in half a record.
            with suppress(Exception):
                writer.close()
            raise
        self._writer = writer
        self._last_seq = max(self._last_seq, rows[-1].seq)

    def close(self, run: RunInfo) -> None:
        """Close the event file."""
        del run
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _add(self, writer: EventFileWriter, row: MetricsRow) -> None:
        if row.is_trained and row.attempt > self._resumed:
            self._resumed = row.attempt
            writer.add_event(restart(row))
        behind = row.is_behind(self._furthest)
        self._furthest = self._furthest if behind else row
        writer.add_event(event(row.without_totals() if behind else row))

    def _begin(self) -> EventFileWriter:
        assert self._run is not None
        run, own = self._run, self._run.run_dir / "tensorboard"
        logdir = Path(self.logdir) / run.project / run.name if self.logdir else own
        return EventFileWriter(str(logdir), filename_suffix=f".{run.attempt}")


def restart(row: MetricsRow) -> Event:
    """Return the event at which TensorBoard drops what was written before from this step on."""
    started = SessionLog(status=SessionLog.START)
    return Event(wall_time=row.recorded_at.timestamp(), step=row.step, session_log=started)


def event(row: MetricsRow) -> Event:
    """Return a row as one event."""
    values = [Summary.Value(tag=key, simple_value=value) for key, value in row.metrics.items()]
    return Event(
        wall_time=row.recorded_at.timestamp(), step=row.step, summary=Summary(value=values)
    )
