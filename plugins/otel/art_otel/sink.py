"""The sink of traces: follows the log, reads the attempts of each row, and sends them in parts."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Sequence
from typing import Protocol

import attrs

from art_core import ConfigError, LoggedRun, MetricsRow, RunInfo
from art_core.base.files import read_json, replace_json
from art_otel.spans import SpanDraft, group_spans, row_span

log = logging.getLogger("art_core")

MAX_SPANS = 500
MAX_CHARACTERS = 2_000_000
"""A request ends after so many spans, or characters of their attributes: collectors take 20 MiB."""
_REMEMBERED_STEPS = 100


class Destination(Protocol):
    """Takes spans and rows; raises if they were not taken."""

    def open(self, run: RunInfo) -> None:
        """Get ready for a run."""

    def send(self, spans: Sequence[SpanDraft], *, content: bool) -> None:
        """Take spans; with their messages, if `content` is true."""

    def send_rows(self, rows: Sequence[MetricsRow]) -> None:
        """Take rows."""

    def close(self) -> None:
        """Finish."""


@attrs.define(eq=False)
class TraceSink:
    """Sends a row's span, and before it the spans of the attempts that are stored for its step.

    An attempt goes with the first row of its step. The ids of traces begin with an id in
    `sinks/<name>.json` of the run, so that what is sent again has the same ids.
    """

    destination: Destination
    content: bool = False
    _run: RunInfo | None = None
    _traces: str = ""
    _seqs: dict[tuple[str, int], dict[int, int]] = attrs.field(factory=dict)
    _sent: set[int] = attrs.field(factory=set)

    def open(self, run: RunInfo) -> None:
        """Find or make the id of the run's traces."""
        self._run, self._traces = run, traces_id(run)
        self.destination.open(run)

    def write(self, rows: Sequence[MetricsRow]) -> None:
        """Send the spans of rows and of their attempts; raises if they were not taken."""
        part: list[SpanDraft] = []
        size = 0
        for spans in self._spans(rows):
            part += spans
            size += sum(map(self._size, spans))
            if len(part) >= MAX_SPANS or size >= MAX_CHARACTERS:
                self._send(part)
                part, size = [], 0
        if part:
            self._send(part)
        self.destination.send_rows(rows)

    def close(self, run: RunInfo) -> None:
        """Close the connections; all spans are sent."""
        del run
        self.destination.close()

    def _send(self, spans: Sequence[SpanDraft]) -> None:
        self.destination.send(spans, content=self.content)
        self._sent.update(span.id for span in spans if span.kind == "attempt")

    def _size(self, span: SpanDraft) -> int:
        values = [*span.attributes.values(), *(span.content.values() if self.content else ())]
        return sum(len(value) if isinstance(value, str) else 8 for value in values)

    def _spans(self, rows: Sequence[MetricsRow]) -> Iterator[list[SpanDraft]]:
        assert self._run is not None
        logged = LoggedRun(self._run.run_dir, self._run.taxonomy)
        stored = {split: set(logged.steps(split)) for split in {row.split for row in rows}}
        for row in rows:
            attempts: list[SpanDraft] = []
            if row.step in stored[row.split]:
                for spans in self._attempts(logged, row):
                    attempts.append(spans[0])
                    if spans[0].id not in self._sent:
                        yield spans
            yield [row_span(self._traces, row, attempts)]

    def _attempts(self, logged: LoggedRun, row: MetricsRow) -> Iterator[list[SpanDraft]]:
        """Yield the spans of the attempts that go with a row: those that no earlier row had."""
        assert self._run is not None
        place = (row.split, row.step)
        seqs = self._seqs.setdefault(place, {})
        if len(self._seqs) > _REMEMBERED_STEPS:
            self._sent -= self._seqs.pop(next(iter(self._seqs))).keys()
        try:
            groups = logged.groups(row.step, row.split)
        except ConfigError as error:
            log.warning("the attempts of a row are not sent as traces: %s", error)
            return
        for number, group in enumerate(groups):
            for spans in group_spans(self._run, self._traces, row, number, group):
                if seqs.setdefault(spans[0].id, row.seq) == row.seq:
                    yield spans


def traces_id(run: RunInfo) -> str:
    """Return the id that a run's traces begin with, made on first use and kept in its directory."""
    file = run.run_dir / "sinks" / f"{run.sink or 'otel'}.json"
    stored = read_json(file)
    if "id" not in stored:
        stored = {**stored, "id": uuid.uuid4().hex}
        file.parent.mkdir(exist_ok=True)
        replace_json(file, stored, sync=False)
    return str(stored["id"])
