"""The sink of TensorBoard's event files: rows as scalars. It needs neither TensorFlow nor torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import attrs
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from art_core import CurrentLine, MetricsRow, RunInfo


@attrs.define(eq=False)
class TensorboardSink:
    """Writes each metric as a scalar at the row's step and time; TensorBoard keeps 32-bit floats.

    A row that comes again has the same step and wall time, and so lies on its first point. What is
    shown is the run's current line (`CurrentLine`): the first trained row of a resumed attempt
    replaces what earlier attempts wrote from its step on, and sums over the rows of a step grow.
    """

    logdir: str | Path | None = None
    _run: RunInfo | None = None
    _writer: EventFileWriter | None = None
    _last_seq: int = 0
    _line: CurrentLine | None = None

    def open(self, run: RunInfo) -> None:
        """Begin an event file; each attempt has its own, in the same directory."""
        self._run, self._line = run, CurrentLine(run)
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
        assert self._line is not None
        change = self._line.change(row)
        if change.begins_at is not None and (change.line is not None or row.attempt > 1):
            writer.add_event(restart(row))
        for step, values in change.values.items():
            writer.add_event(event(row, step, values))

    def _begin(self) -> EventFileWriter:
        assert self._run is not None
        run, own = self._run, self._run.run_dir / "tensorboard"
        logdir = Path(self.logdir) / run.project / run.name if self.logdir else own
        return EventFileWriter(str(logdir), filename_suffix=f".{run.attempt}")


def restart(row: MetricsRow) -> Event:
    """Return the event that makes TensorBoard drop earlier values from this step on."""
    started = SessionLog(status=SessionLog.START)
    return Event(wall_time=row.recorded_at.timestamp(), step=row.step, session_log=started)


def event(row: MetricsRow, step: int, values: Mapping[str, float]) -> Event:
    """Return the values of a step after a row as one event."""
    scalars = [Summary.Value(tag=key, simple_value=value) for key, value in values.items()]
    return Event(wall_time=row.recorded_at.timestamp(), step=step, summary=Summary(value=scalars))
