"""Reads rows into a summary: of rows with the same keys, a few hundred at a time, column by column.

Most of the time goes into `orjson.loads`; a row's values are picked out of it and the row is let
go, so that what is worked on stays in the processor's cache.
"""

from __future__ import annotations

import math
from codecs import BOM_UTF8
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, BinaryIO

import attrs
from orjson import JSONDecodeError, loads

from art_core.metrics.summary_page import Entry, Summary, better_values
from art_core.metrics.taxonomy import Direction, Taxonomy

_AT_ONCE = 256
_NUMBERS = frozenset({int, float, bool})
_NEWLINE = ord("\n")
_BLANK = b"\r\n\0 "


def summarize_log(
    file: BinaryIO, summary: Summary, taxonomy: Taxonomy, *, anew: bool = True
) -> Summary:
    """Add the rows after `summary.offset` to it.

    Begins anew when they repeat a step that it has seen: of steps from there on every value is
    remembered while reading, so that the newer one counts. Raises RepeatedStepError instead if
    `anew` is False.
    """
    since = math.inf
    while True:
        try:
            return _Reader(taxonomy, summary, since).read(file)
        except RepeatedStepError as error:
            if not anew:
                raise
            summary, since = Summary(), error.step


class RepeatedStepError(Exception):
    """A row repeats a step of an earlier attempt that was taken for settled."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


@attrs.frozen
class _Shape:
    """Rows with the same keys. `pick` gives a row's step, attempt, time, what was not finite, and
    then a value for each of `columns`.
    """

    width: int
    pick: Callable[[dict[str, Any]], tuple[Any, ...]]
    attempt: int | None
    recorded_at: int | None
    nonfinite: int | None
    columns: tuple[tuple[int, str, Direction | None], ...]


_NO_SHAPE = _Shape(-1, lambda _: (), None, None, None, ())


def _shape(keys: Sequence[str], taxonomy: Taxonomy) -> _Shape:
    """Return the shape of rows with these keys; `_NO_SHAPE` where they name no step."""
    step = next((name for name in ("step", "training_step") if name in keys), None)
    if step is None:
        return _NO_SHAPE
    names = taxonomy.names(keys, foreign="schema" not in keys)
    metrics = {key: name for key, name in zip(keys, names, strict=True) if "/" in name}
    known = [name for name in ("attempt", "recorded_at", "_nonfinite") if name in keys]
    # The step twice: of a single key, itemgetter gives the value alone.
    picked = [step, step, *known, *metrics]
    place = {key: i for i, key in enumerate(picked)}
    columns = tuple((place[k], name, better_values(name, taxonomy)) for k, name in metrics.items())
    attempt, at, odd = (place.get(name) for name in ("attempt", "recorded_at", "_nonfinite"))
    return _Shape(len(keys), itemgetter(*picked), attempt, at, odd, columns)


@attrs.define
class _Reader:
    """Adds rows to a summary. Steps from `since` on are known to come again: `_curves` holds their
    values until the end.
    """

    taxonomy: Taxonomy
    summary: Summary
    since: float
    _shapes: dict[tuple[str, ...], _Shape] = attrs.field(factory=dict)
    _curves: dict[str, dict[int, float]] = attrs.field(factory=dict)

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
        self._fold_curves()
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

    def _fold_curves(self) -> None:
        for key, curve in self._curves.items():
            for step, value in curve.items():
                self.summary.metrics[key].take(value, step)

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
        self._count(attempts[0], steps)
        if shape.recorded_at is not None:
            times = columns[shape.recorded_at]
            self.summary.started = self.summary.started or str(times[0])
            self.summary.ended = str(times[-1])
        add = self._column if max(steps) < self.since else self._curve
        for i, key, better in shape.columns:
            add(key, better, columns[i], steps)
        if shape.nonfinite is not None:
            for names in columns[shape.nonfinite]:
                self._nonfinite(names)

    def _count(self, attempt: Any, steps: Sequence[int]) -> None:
        page = self.summary
        if attempt != page.attempt:
            page.attempt, page.earlier_step = attempt, page.highest_step
        lowest = min(steps)
        if lowest <= page.earlier_step and lowest < self.since:
            raise RepeatedStepError(lowest)
        page.rows += len(steps)
        page.step = steps[-1]
        page.highest_step = max(page.highest_step, *steps)

    def _column(
        self, key: str, better: Direction | None, values: Sequence[Any], steps: Sequence[int]
    ) -> None:
        try:
            best = min(values) if better == "lower" else max(values) if better else values[-1]
        except TypeError:
            best = None
        if not _NUMBERS.issuperset((type(values[0]), type(values[-1]), type(best))):
            values, steps = _numbers(values, steps)
            if values:
                self._column(key, better, values, steps)
            return
        entry = self._entry(key, better, values)
        if better and (entry.best is None or best != entry.best):
            entry.take(float(best), steps[values.index(best)])

    def _curve(
        self, key: str, better: Direction | None, values: Sequence[Any], steps: Sequence[int]
    ) -> None:
        """As `_column`, where steps come again."""
        values, steps = _numbers(values, steps)
        if not values:
            return
        entry, curve = self._entry(key, better, values), self._curves.setdefault(key, {})
        for value, step in zip(values, steps, strict=True):
            if step < self.since:
                entry.take(float(value), step)
            else:
                curve[step] = float(value)

    def _entry(self, key: str, better: Direction | None, values: Sequence[float]) -> Entry:
        entry = self.summary.metrics.get(key)
        if entry is None:
            entry = self.summary.metrics[key] = Entry(better, float(values[0]), math.nan)
        entry.last = float(values[-1])
        return entry

    def _nonfinite(self, names: dict[str, str]) -> None:
        for key in names:
            name = self.taxonomy.resolve(key)
            if name in self.summary.metrics:
                self.summary.metrics[name].last = math.nan


def _numbers(values: Sequence[Any], steps: Sequence[int]) -> tuple[Sequence[float], Sequence[int]]:
    """Return the values that are numbers, with their steps."""
    pairs = [(v, s) for v, s in zip(values, steps, strict=True) if type(v) in _NUMBERS]
    return [v for v, _ in pairs], [s for _, s in pairs]
