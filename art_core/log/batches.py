"""Batches of a log's rows that have the same fields, so that they are added column by column.

`orjson.loads` takes most of the time. Only a row's values are kept; a few hundred rows fit into the
processor's cache.
"""

from __future__ import annotations

import logging
from array import array
from bisect import bisect_left
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from operator import itemgetter, lt
from typing import Any, BinaryIO

import attrs
from orjson import JSONDecodeError, loads

from art_core.base.errors import HistoryError
from art_core.metrics.row import MetricsRow, is_total
from art_core.metrics.taxonomy import Taxonomy

log = logging.getLogger("art_core")

BLANK = b"\r\n\0 "
"""The bytes of an empty line."""
MAX_ROWS = 256
BUFFER = 1 << 17
_NEWLINE = ord("\n")
_FIELDS = {"seq": int, "attempt": int, "step": int, "split": str, "recorded_at": str}
_TYPES = {**_FIELDS, "_receipts": list, "_scenario_ids": list}
_SAME = ("attempt", "split")
_LEARNED = ("reward/", "loss/")
"""The prefixes of keys that mark a row of a trained step."""
_TRAINED = ("train", "")
"""The splits of such a row: rows of ART have none."""
_TRAINING = (*_LEARNED, "train/")


def attempt_of(row: MetricsRow) -> int:
    """Return a row's attempt; 0 if another program wrote another type there."""
    return row.attempt if isinstance(row.attempt, int) else 0


def adds_up(key: str, taxonomy: Taxonomy) -> bool:
    """Return whether a metric is summed over the rows of a step."""
    return is_paid(key) or (not is_total(key) and taxonomy.spec(key).combine == "sum")


def is_paid(key: str) -> bool:
    """Return whether a metric is a cost of a step."""
    return key.startswith("costs/") and not key.startswith("costs/cum/")


@attrs.define(eq=False)
class Points:
    """The values of a key, by step."""

    steps: list[int] = attrs.field(factory=list)
    values: array[float] = attrs.field(factory=lambda: array("d"))

    def put(self, step: int, value: float, *, sums: bool) -> None:
        """Set the value at a step; add to the one that is there if the key `sums`."""
        if not self.steps or step > self.steps[-1]:
            self.steps.append(step)
            self.values.append(value)
            return
        at = bisect_left(self.steps, step)
        if self.steps[at] == step:
            self.values[at] = self.values[at] + value if sums else value
        else:
            self.steps.insert(at, step)
            self.values.insert(at, value)

    def at(self, step: int) -> float | None:
        """Return the value at a step; None without one."""
        at = bisect_left(self.steps, step)
        return self.values[at] if self.steps[at : at + 1] == [step] else None

    def before(self, limit: float) -> Points:
        """Return the points before a step."""
        if not self.steps or self.steps[-1] < limit:
            return self
        end = bisect_left(self.steps, limit)
        return Points(self.steps[:end], self.values[:end])

    def merge(self, others: Points, *, sums: bool) -> None:
        """Add the points of another object to these."""
        if not self.steps or (others.steps and others.steps[0] > self.steps[-1]):
            self.steps.extend(others.steps)
            self.values.extend(others.values)
            return
        for step, value in zip(others.steps, others.values, strict=True):
            self.put(step, value, sums=sums)


@attrs.frozen
class Kind:
    """The treatment of a key's values: kept or not, a total, summed over a step's rows."""

    kept: bool
    total: bool
    sums: bool


@attrs.frozen
class RowPlan:
    """The treatment of rows with the same metrics: canonical names, and the kinds of kept ones.

    `learned` is True for rows with a reward or a loss.
    """

    names: tuple[str, ...]
    kinds: dict[str, Kind]
    learned: bool
    of_training: bool

    @classmethod
    def of(cls, names: tuple[str, ...], kinds: Mapping[str, Kind]) -> RowPlan:
        """Return the plan of rows with these metrics, of these kinds."""
        return cls(
            names=names,
            kinds={name: kind for name, kind in kinds.items() if kind.kept},
            learned=any(name.startswith(_LEARNED) for name in names),
            of_training=any(name.startswith(_TRAINING) for name in names),
        )

    def learns(self, row: MetricsRow) -> bool:
        """Return whether a row is of a trained step, with a reward or a loss."""
        return self.learned and row.split in _TRAINED

    def trains(self, row: MetricsRow) -> bool:
        """Return whether a row shows that its step was trained.

        That is a row on the split `train`; one that ART wrote has no split, and is known by a
        reward or a loss. Step 0 is the base model: it counts only with a reward or a loss of its
        own on `train`, not when evaluations or costs were logged before the first step.
        """
        if row.split == "train" and row.step > 0:
            return True
        return self.of_training and row.split in _TRAINED


@attrs.frozen
class Columns:
    """The metrics of several rows as columns, with the rows' steps and times."""

    steps: list[int]
    times: Sequence[datetime]
    metrics: dict[str, array[float]]


@attrs.frozen
class Batch:
    """Rows with the same fields, in the order of the log.

    `line` is the last row's line, and `end` the offset after it in the file `path`.
    """

    path: str
    fields: tuple[str, ...]
    rows: Sequence[tuple[Any, ...]] = attrs.field(repr=False)
    line: bytes
    end: int

    def row(self, index: int) -> MetricsRow | None:
        """Return one of the rows; None, with a warning, if it can't be read."""
        try:
            return MetricsRow.from_record(dict(zip(self.fields, self.rows[index], strict=True)))
        except HistoryError as error:
            log.warning("%s: %s", self.path, error)
            return None

    def columns(self) -> Columns | None:
        """Return the rows between the first and the last as columns.

        Returns None unless the rows are valid and of one attempt and split, at rising steps.
        Other rows must be added one by one.
        """
        if (
            len(self.rows) < 3
            or "_nonfinite" in self.fields
            or not _FIELDS.keys() <= {*self.fields}
        ):
            return None
        columns = dict(zip(self.fields, zip(*self.rows, strict=True), strict=True))
        steps = columns["step"]
        typed = all({*map(type, columns[n])} == {_TYPES[n]} for n in _TYPES if n in columns)
        if not typed or not all(map(lt, steps, steps[1:])) or min(columns["seq"]) < 1:
            return None
        if any(columns[name].count(columns[name][0]) < len(steps) for name in _SAME):
            return None
        try:
            times = [datetime.fromisoformat(text) for text in columns["recorded_at"][1:-1]]
            metrics = {n: array("d", columns[n][1:-1]) for n in self.fields if "/" in n}
        except (TypeError, ValueError, OverflowError):
            return None
        return Columns([*steps[1:-1]], times, metrics) if all(t.tzinfo for t in times) else None


def read_batches(file: BinaryIO, offset: int = 0) -> Iterator[Batch]:
    """Yield the lines from a byte offset on; a torn last line is left for later.

    Blank lines are passed over, and with a warning those that hold no JSON object.
    """
    fields: tuple[str, ...] = ()
    pick: Callable[[Any], tuple[Any, ...]] = itemgetter(0, 0)
    rows: list[tuple[Any, ...]] = []
    last, end = b"", offset
    file.seek(offset)
    for line in file:
        if line[-1] != _NEWLINE:
            break
        try:
            record = loads(line)
            row = pick(record) if len(record) == len(fields) else None
        except (JSONDecodeError, LookupError, TypeError):
            row = None
        if rows and (row is None or len(rows) == MAX_ROWS):
            yield Batch(file.name, fields, rows, last, end)
            rows = []
        offset += len(line)
        if row is None:
            record = _object(line, file.name)
            if len(record) < 2:
                continue
            fields = tuple(record)
            pick = itemgetter(*fields)
            row = pick(record)
        rows.append(row)
        last, end = line, offset
    if rows:
        yield Batch(file.name, fields, rows, last, end)


def _object(line: bytes, path: str) -> dict[str, Any]:
    """Return a line's JSON object; an empty one if it holds none."""
    with suppress(JSONDecodeError):
        record = loads(line.removeprefix(BOM_UTF8))
        if isinstance(record, dict):
            return record
    if line.strip(BLANK):
        log.warning("%s: not a row of metrics: %r", path, line[:80])
    return {}
