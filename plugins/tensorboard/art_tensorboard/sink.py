"""Rows as scalars in TensorBoard's event files; neither TensorFlow nor torch is needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from art_core import MetricsRow, RunInfo


@attrs.define(eq=False)
class TensorboardSink:
    """Writes each metric as a scalar at the row's step and time; TensorBoard keeps 32-bit floats.

    A row that comes again has the same step and wall time, and so lies on its first point.
    """

    logdir: str | Path | None = None
    _writer: EventFileWriter | None = None
    _last_seq: int = 0

    def open(self, run: RunInfo) -> None:
        """Begin an event file; each attempt has its own, in the same directory."""
        own = run.run_dir / "tensorboard"
        logdir = Path(self.logdir) / run.project / run.name if self.logdir else own
        self._writer = EventFileWriter(str(logdir), filename_suffix=f".{run.attempt}")

    def write(self, rows: Sequence[MetricsRow]) -> None:
        """Write rows and wait until they are in the file."""
        assert self._writer is not None
        for row in rows:
            if row.seq > self._last_seq or not row.seq:
                self._writer.add_event(event(row))
        self._writer.flush()
        self._last_seq = max(self._last_seq, rows[-1].seq)

    def close(self, run: RunInfo) -> None:
        """Close the event file."""
        del run
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def event(row: MetricsRow) -> Event:
    """Return a row as one event."""
    values = [Summary.Value(tag=key, simple_value=value) for key, value in row.metrics.items()]
    return Event(
        wall_time=row.recorded_at.timestamp(), step=row.step, summary=Summary(value=values)
    )
