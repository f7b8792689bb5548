"""Reads rows into a summary, a quarter of a megabyte at a time, same keys together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, BinaryIO

import attrs
import orjson

from art_core.metrics.summary_page import Entry, Summary, better_values
from art_core.metrics.taxonomy import Direction, Taxonomy

_BLOCK = 1 << 18
_NUMBERS = frozenset({int, float, bool})


def summarize_log(file: BinaryIO, summary: Summary, taxonomy: Taxonomy) -> Summary:
    """Add the rows after `summary.offset` to it; begin anew when they repeat a step it has seen."""
    try:
        return _Reader(taxonomy, summary).read(file)
    except _RepeatedStepError:
        return _ExactReader(taxonomy, Summary()).read(file)


class _RepeatedStepError(Exception):
    pass


@attrs.frozen
class _Shape:
    """Rows with the same keys: how their step is called, which columns are metrics."""

    step: str
    columns: tuple[tuple[int, str, Direction | None], ...]


def _shape(keys: Sequence[str], taxonomy: Taxonomy) -> _Shape | None:
    step = next((name for name in ("step", "training_step") if name in keys), None)
    if step is None:
        return None
    names = taxonomy.names(keys, foreign="schema" not in keys)
    named = ((i, name) for i, name in enumerate(names) if "/" in name)
    return _Shape(step, tuple((i, key, better_values(key, taxonomy)) for i, key in named))


@attrs.define
class _Reader:
    """Adds rows to a summary: those with the same keys together, column by column."""

    taxonomy: Taxonomy
    summary: Summary
    _shapes: dict[tuple[str, ...], _Shape | None] = attrs.field(factory=dict)

    def read(self, file: BinaryIO) -> Summary:
        file.seek(self.summary.offset)
        for block in _blocks(file):
            records, bad = _records(block)
            self.summary.skipped += bad
            for (attempt, *keys), group in groupby(records, _kind):
                self._take(attempt, tuple(keys), list(group))
            self.summary.offset += len(block)
        return self.summary

    def _take(self, attempt: Any, keys: tuple[str, ...], records: list[dict[str, Any]]) -> None:
        if keys not in self._shapes:
            self._shapes[keys] = _shape(keys, self.taxonomy)
        shape = self._shapes[keys]
        whole = [r for r in records if type(r[shape.step]) is int] if shape else []
        self.summary.skipped += len(records) - len(whole)
        if shape is None or not whole:
            return
        columns = list(zip(*map(dict.values, whole), strict=True))
        steps: Sequence[int] = columns[keys.index(shape.step)]
        self._count(attempt, whole, steps)
        for i, key, better in shape.columns:
            self._column(key, better, columns[i], steps)
        if "_nonfinite" in keys:
            self._nonfinite(columns[keys.index("_nonfinite")])

    def _count(self, attempt: Any, records: Sequence[dict[str, Any]], steps: Sequence[int]) -> None:
        page = self.summary
        if attempt != page.attempt:
            page.attempt, page.earlier_step = attempt, page.highest_step
        if min(steps) <= page.earlier_step:
            self._repeated()
        page.rows += len(records)
        page.step = steps[-1]
        page.highest_step = max(page.highest_step, *steps)
        page.started = page.started or str(records[0].get("recorded_at", ""))
        page.ended = str(records[-1].get("recorded_at", ""))

    def _repeated(self) -> None:
        raise _RepeatedStepError

    def _column(
        self, key: str, better: Direction | None, values: Sequence[Any], steps: Sequence[int]
    ) -> None:
        try:
            best = min(values) if better == "lower" else max(values) if better else values[-1]
        except TypeError:
            best = None
        if not _NUMBERS.issuperset((type(values[0]), type(values[-1]), type(best))):
            pairs = [(v, s) for v, s in zip(values, steps, strict=True) if type(v) in _NUMBERS]
            if pairs:
                self._column(key, better, *zip(*pairs, strict=True))
            return
        entry = self.summary.metrics.get(key)
        if entry is None:
            entry = self.summary.metrics[key] = Entry(better, float(values[0]), math.nan)
        entry.last = float(values[-1])
        entry.take(float(best), steps[values.index(best)])

    def _nonfinite(self, column: Sequence[Any]) -> None:
        for key in column[-1]:
            name = self.taxonomy.resolve(key)
            if name in self.summary.metrics:
                self.summary.metrics[name].last = math.nan


@attrs.define
class _ExactReader(_Reader):
    """Keeps every value while it reads, so that a repeated step can replace what it said before."""

    _curves: dict[str, dict[int, float]] = attrs.field(factory=dict)

    def read(self, file: BinaryIO) -> Summary:
        super().read(file)
        for key, curve in self._curves.items():
            entry = self.summary.metrics[key]
            entry.best = entry.best_step = None
            for step, value in curve.items():
                entry.take(value, step)
        return self.summary

    def _repeated(self) -> None:
        """Nothing to do: the curve takes the newer value."""

    def _column(
        self, key: str, better: Direction | None, values: Sequence[Any], steps: Sequence[int]
    ) -> None:
        super()._column(key, better, values, steps)
        numbers = ((s, float(v)) for s, v in zip(steps, values, strict=True) if type(v) in _NUMBERS)
        if key in self.summary.metrics:
            self._curves.setdefault(key, {}).update(numbers)


def _kind(record: dict[str, Any]) -> tuple[Any, ...]:
    return (record.get("attempt", 0), *record)


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    """Yield whole lines, a quarter of a megabyte at a time; a torn last line is left for later."""
    rest = b""
    while chunk := file.read(_BLOCK):
        head, newline, tail = chunk.rpartition(b"\n")
        if newline:
            yield rest + head + newline
            rest = tail
        else:
            rest += chunk


def _records(block: bytes) -> tuple[list[dict[str, Any]], int]:
    """Return the rows of a block, and how many of its lines are none."""
    lines = block.count(b"\n")
    try:
        records: list[Any] = orjson.loads(b"[%b]" % block[:-1].replace(b"\n", b","))
    except orjson.JSONDecodeError:
        records = []
    if len(records) == lines and set(map(type, records)) == {dict}:
        return records, 0
    found = [_record(line) for line in block.split(b"\n") if line.strip(b"\r\0 ")]
    whole = [record for record in found if record is not None]
    return whole, len(found) - len(whole)


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return record if isinstance(record, dict) else None
