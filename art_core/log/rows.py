"""The rows of a log: one by one, from either end, or column by column.

`orjson.loads` takes most of the time of reading. Rows with the same fields come in batches, so that
they are added column by column. Only a row's values are kept; a few hundred rows fit into the
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
from pathlib import Path
from typing import Any, BinaryIO

import attrs
import orjson
from orjson import JSONDecodeError, loads

from art_core.base.errors import ConfigError, HistoryError
from art_core.base.files import read_json
from art_core.log.history import BLANK, HistoryLog, MetricsRow, is_total, lines_backwards
from art_core.metrics.rollup import UNIQUE_SCENARIOS
from art_core.metrics.taxonomy import Taxonomy, cumulative_key

log = logging.getLogger("art_core")

_GRADIENT_STEPS = b'"data/step_num_gradient_steps"'


def read_rows(path: Path, offset: int = 0) -> Iterator[tuple[MetricsRow, int]]:
    """Yield the whole rows from a byte offset on, each with the offset after it.

    Lines that are not rows are passed over with a warning; a torn last line is left for later.
    """
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            if line.strip(BLANK):
                try:
                    yield MetricsRow.from_line(line), offset
                except HistoryError as error:
                    log.warning("%s: %s", path, error)


def scenario_ids_of(path: Path) -> set[str]:
    """Return the scenario ids of a run, decoding only the rows that have new ones.

    ART keeps them in the run's `state.json` instead.
    """
    ids = former_scenario_ids(path.parent)
    with path.open("rb") as file:
        for line in file:
            if b'"_scenario_ids"' in line and line.endswith(b"\n"):
                with suppress(ValueError, KeyError, TypeError):
                    ids.update(orjson.loads(line.removeprefix(BOM_UTF8))["_scenario_ids"])
    return ids


def former_scenario_ids(run_dir: Path) -> set[str]:
    """Return the scenario ids in the `state.json` of a run that ART wrote."""
    try:
        stored = read_json(run_dir / "state.json")["_metrics_builder_state"]["unique_scenario_ids"]
    except (ConfigError, KeyError, TypeError):
        return set()
    ids = stored if isinstance(stored, list) else []
    return {scenario for scenario in ids if isinstance(scenario, str)}


def offset_after(path: Path, seq: int) -> int:
    """Return the offset after the last row whose seq is at most `seq`, reading the file from its
    end; 0 if there is no such row. Rows that ART wrote have no seq.
    """
    end = size = path.stat().st_size
    for line in lines_backwards(path, size):
        with suppress(HistoryError):
            found = MetricsRow.from_line(line).seq
            if end < size and isinstance(found, int) and 0 < found <= seq:
                return end + 1
        end -= len(line) + 1
    return 0


def last_trained_step(path: Path) -> int:
    """Return the step of the last row that a training step wrote; 0 without one."""
    for line in lines_backwards(path):
        if _GRADIENT_STEPS in line:
            with suppress(HistoryError):
                return MetricsRow.from_line(line).step
    return 0


def cursor_at(path: Path, step: int) -> int:
    """Return the place in the run's queue up to which the last row at or before a step was trained;
    0 without such a row, or without a log.
    """
    for line in lines_backwards(path) if path.exists() else ():
        if b'"_cursor"' in line:
            with suppress(HistoryError):
                row = MetricsRow.from_line(line)
                if row.step <= step and isinstance(row.cursor, int):
                    return row.cursor
    return 0


def paid_at(path: Path) -> int:
    """Return the number of the last paid call of the queue that the log has; 0 without one."""
    for line in lines_backwards(path) if path.exists() else ():
        if b'"_paid"' in line:
            with suppress(HistoryError):
                return MetricsRow.from_line(line).paid or 0
    return 0


def unreadable_totals(path: Path) -> list[str]:
    """Return the keys of sums over the run that are not numbers in the last row."""
    for line in lines_backwards(path):
        with suppress(HistoryError):
            MetricsRow.from_line(line)
            record = orjson.loads(line.removeprefix(BOM_UTF8))
            return [k for k, v in record.items() if _is_sum(k) and not isinstance(v, (int, float))]
    return []


def _is_sum(key: str) -> bool:
    return "/cum/" in key or key == "time/wall_clock_sec"


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


def logged_state(history: HistoryLog, taxonomy: Taxonomy) -> Mapping[str, float]:
    """Return the state of a run by its log: the metrics of the last row.

    Rows that ART wrote lack sums, so the newest value of each key counts, and the scenario ids that
    ART kept. A total that is not a number in the last row, such as null, is computed from all rows.
    """
    if history.last is None:
        return {}
    lost = unreadable_totals(history.path)
    if history.last.seq and not lost:
        return history.last.metrics
    if lost:
        log.warning(
            "%s: the last row has no number at %s: computed from the rows before",
            history.path,
            ", ".join(lost),
        )
    state: dict[str, float] = {}
    for row, _ in read_rows(history.path):
        state |= _with_lost(state, taxonomy.renamed(row.metrics, foreign=not row.seq), lost)
    if UNIQUE_SCENARIOS not in state or UNIQUE_SCENARIOS in lost:
        ids = scenario_ids_of(history.path)
        state |= {UNIQUE_SCENARIOS: float(len(ids))} if ids else {}
    return state


def _with_lost(
    state: Mapping[str, float], metrics: Mapping[str, float], lost: Sequence[str]
) -> dict[str, float]:
    """Return a row's metrics, and the `lost` totals that the row does not have, added up."""
    leaves = {cumulative_key(key): key for key in metrics if "/cum/" not in key}
    return {
        total: state.get(total, 0.0) + metrics[leaves[total]]
        for total in lost
        if total in leaves and total not in metrics
    } | dict(metrics)
