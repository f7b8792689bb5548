"""Reads rows into a summary: of rows with the same keys, a few hundred at a time, column by column.

Most of the time goes into `orjson.loads`; a row's values are picked out of it and the row is let
go, so that what is worked on stays in the processor's cache.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Callable, Sequence
from itertools import accumulate
from operator import itemgetter, lt
from typing import Any, BinaryIO

import attrs
from orjson import JSONDecodeError, loads

from art_core.log.summary_page import Entry, OutOfOrderError, Summary, better_values
from art_core.log.timeline import LEARNED, TRAINED, adds_up
from art_core.metrics.row import is_total
from art_core.metrics.taxonomy import Direction, Taxonomy

_AT_ONCE = 256
_NUMBERS = frozenset({int, float, bool})
_NEWLINE = ord("\n")
_BLANK = b"\r\n\0 "


def summarize_log(file: BinaryIO, summary: Summary, taxonomy: Taxonomy) -> Summary:
    """Add the rows after `summary.offset` to it.

    Raises OutOfOrderError when a row changes what was said of older steps: an attempt that trained
    from an older step on, or an evaluation of an older step that cost something.
    """
    return _Reader(taxonomy, summary).read(file)


@attrs.frozen
class _Shape:
    """Rows with the same keys. `pick` gives a row's step, attempt, time, what was not finite, and
    then a value for each of `columns`.
    """

    width: int
    pick: Callable[[dict[str, Any]], tuple[Any, ...]]
    attempt: int | None = None
    split: int | None = None
    recorded_at: int | None = None
    nonfinite: int | None = None
    learned: bool = False
    columns: tuple[_Column, ...] = ()


@attrs.frozen
class _Column:
    """A metric in a shape: its place there, its key, and how its values are kept."""

    place: int
    key: str
    better: Direction | None
    total: bool
    sums: bool


_NO_SHAPE = _Shape(-1, lambda _: ())


def _shape(keys: Sequence[str], taxonomy: Taxonomy) -> _Shape:
    """Return the shape of rows with these keys; `_NO_SHAPE` where they name no step."""
    step = next((name for name in ("step", "training_step") if name in keys), None)
    if step is None:
        return _NO_SHAPE
    names = taxonomy.names(keys, foreign="schema" not in keys)
    metrics = {key: name for key, name in zip(keys, names, strict=True) if "/" in name}
    known = [n for n in ("attempt", "split", "recorded_at", "_nonfinite") if n in keys]
    # The step twice: of a single key, itemgetter gives the value alone.
    picked = [step, step, *known, *metrics]
    place = {key: i for i, key in enumerate(picked)}
    return _Shape(
        width=len(keys),
        pick=itemgetter(*picked),
        attempt=place.get("attempt"),
        split=place.get("split"),
        recorded_at=place.get("recorded_at"),
        nonfinite=place.get("_nonfinite"),
        learned=any(name.startswith(LEARNED) for name in metrics.values()),
        columns=tuple(
            _Column(
                place=place[key],
                key=name,
                better=better_values(name, taxonomy),
                total=is_total(name),
                sums=adds_up(name, taxonomy),
            )
            for key, name in metrics.items()
        ),
    )


@attrs.define
class _Reader:
    """Adds rows to a summary."""

    taxonomy: Taxonomy
    summary: Summary
    _shapes: dict[tuple[str, ...], _Shape] = attrs.field(factory=dict)

    def read(self, file: BinaryIO) -> Summary:
        offset = self.summary.offset
        file.seek(offset)
        shape = _NO_SHAPE
        rows: list[tuple[Any, ...]] = []
        for line in file:
            if line[-1] != _NEWLINE:
                break
            offset += len(line)
            try:
                record = loads(line)
                row = shape.pick(record) if len(record) == shape.width else None
            except (JSONDecodeError, KeyError, TypeError):
                row = None
            if row is None or len(rows) == _AT_ONCE:
                self._take(shape, rows)
                rows = []
            if row is None:
                shape, row = self._begin(line)
            if row is not None:
                rows.append(row)
        self._take(shape, rows)
        self.summary.offset = offset
        return self.summary

    def _begin(self, line: bytes) -> tuple[_Shape, tuple[Any, ...] | None]:
        """Return a line's shape, and what it picks; None, and counted, where the line is no row."""
        try:
            record = loads(line.removeprefix(BOM_UTF8))
            shape = self._shape_of(tuple(record)) if isinstance(record, dict) else _NO_SHAPE
        except JSONDecodeError:
            shape = _NO_SHAPE
        if shape is _NO_SHAPE:
            self.summary.skipped += bool(line.strip(_BLANK))
            return shape, None
        return shape, shape.pick(record)

    def _shape_of(self, keys: tuple[str, ...]) -> _Shape:
        if keys not in self._shapes:
            self._shapes[keys] = _shape(keys, self.taxonomy)
        return self._shapes[keys]

    def _take(self, shape: _Shape, rows: list[tuple[Any, ...]]) -> None:
        """Add rows of a shape to the page, those of one attempt together."""
        whole = [row for row in rows if type(row[0]) is int]
        self.summary.skipped += len(rows) - len(whole)
        if not whole:
            return
        columns = list(zip(*whole, strict=True))
        attempts = columns[shape.attempt] if shape.attempt is not None else (0,)
        if attempts.count(attempts[0]) != len(attempts):
            first = next(i for i, attempt in enumerate(attempts) if attempt != attempts[0])
            self._take(shape, whole[:first])
            self._take(shape, whole[first:])
            return
        steps = columns[0]
        reached = [*accumulate(steps, max, initial=self.summary.highest_step)][1:]
        self._count(shape, attempts[0], columns)
        if shape.recorded_at is not None:
            times = columns[shape.recorded_at]
            self.summary.started = self.summary.started or str(times[0])
            self.summary.ended = str(times[-1])
        rising = all(map(lt, steps, steps[1:]))
        for column in shape.columns:
            at = reached if column.total else steps
            self._column(column, columns[column.place], at, rising=rising)
        if shape.nonfinite is not None:
            for names, step in zip(columns[shape.nonfinite], steps, strict=True):
                self._nonfinite(names, step)

    def _count(self, shape: _Shape, attempt: Any, columns: Sequence[Sequence[Any]]) -> None:
        page, steps = self.summary, columns[0]
        if attempt != page.attempt:
            page.attempt, page.earlier_step, page.begun = attempt, page.highest_step, False
        if shape.learned:
            splits = columns[shape.split] if shape.split is not None else [""] * len(steps)
            self._learn([s for s, split in zip(steps, splits, strict=True) if split in TRAINED])
        page.rows += len(steps)
        page.step = steps[-1]
        page.highest_step = max(page.highest_step, *steps)

    def _learn(self, steps: Sequence[int]) -> None:
        """Take note of rows that were trained; OutOfOrderError for an older step."""
        page = self.summary
        if not steps:
            return
        if min(steps) < page.highest_step or [*steps] != sorted(steps):
            raise OutOfOrderError
        if not page.begun and steps[0] <= page.earlier_step:
            raise OutOfOrderError
        page.begun = True

    def _column(
        self, column: _Column, values: Sequence[Any], steps: Sequence[int], *, rising: bool
    ) -> None:
        if not _NUMBERS.issuperset(map(type, values)):
            values, steps = _numbers(values, steps)
            if not values:
                return
        entry = self.summary.metrics.get(column.key)
        if entry is None:
            entry = Entry(column.better, float(values[0]), float(values[0]), steps[0], steps[0])
            self.summary.metrics[column.key] = entry
            values, steps = values[1:], steps[1:]
        if not values:
            return
        if rising and steps[0] > entry.step:
            _add_many(entry, values, steps)
            return
        for value, step in zip(values, steps, strict=True):
            entry.add(float(value), step, sums=column.sums)

    def _nonfinite(self, names: dict[str, str], step: int) -> None:
        for key in names:
            entry = self.summary.metrics.get(self.taxonomy.resolve(key))
            if entry is not None:
                entry.add_nonfinite(step)


def _add_many(entry: Entry, values: Sequence[Any], steps: Sequence[int]) -> None:
    """Add values of ever later steps."""
    entry.take(entry.last, entry.step)
    settled = values[:-1]
    if settled and entry.better:
        best = min(settled) if entry.better == "lower" else max(settled)
        entry.take(float(best), steps[settled.index(best)])
    entry.last, entry.step = float(values[-1]), steps[-1]


def _numbers(values: Sequence[Any], steps: Sequence[int]) -> tuple[Sequence[float], Sequence[int]]:
    """Return the values that are numbers, with their steps."""
    pairs = [(v, s) for v, s in zip(values, steps, strict=True) if type(v) in _NUMBERS]
    return [v for v, _ in pairs], [s for _, s in pairs]
