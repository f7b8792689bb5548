"""A run's log as a table in a file: CSV, Parquet or JSON lines, under today's names."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from art_core.base.errors import ConfigError
from art_core.log.history import MetricsRow
from art_core.log.reader import FIELDS, LoggedRun

_ROWS_AT_ONCE = 10_000


def export(run: LoggedRun, form: str, out: Path) -> int:
    """Write a run's rows to a file, whole or not at all, and return how many there are.

    CSV and Parquet have one column per key and are blank where a row has none; JSON lines hold the
    rows with their receipts. Raises ConfigError when Parquet's library is missing, when a row has a
    value that the format can't hold, and when `out` is the log.
    """
    if out.exists() and out.samefile(run.history):
        raise ConfigError(f"{out} is the run's own log", "Export it to another file.")
    aside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        count = FORMATS[form](run.rows, aside)
        aside.replace(out)
    finally:
        aside.unlink(missing_ok=True)
    return count


Rows = Callable[[], Iterator[MetricsRow]]


def _keys(rows: Rows) -> list[str]:
    keys: set[str] = set()
    for row in rows():
        keys.update(row.metrics)
    return sorted(keys)


def _envelope(row: MetricsRow) -> list[Any]:
    return [getattr(row, name) for name in FIELDS]


def _csv(rows: Rows, out: Path) -> int:
    keys, count = _keys(rows), 0
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*FIELDS, *keys])
        for row in rows():
            count += 1
            cells = [*_envelope(row)[:-1], row.recorded_at.isoformat()]
            writer.writerow(cells + [row.metrics.get(key, "") for key in keys])
    return count


def _jsonl(rows: Rows, out: Path) -> int:
    count = 0
    with out.open("wb") as file:
        for row in rows():
            try:
                file.write(row.to_line())
            except TypeError as error:
                raise ConfigError(
                    f"the row of step {row.step} is nothing that JSON lines can hold: {error}",
                    "Export it as csv.",
                ) from error
            count += 1
    return count


def _parquet(rows: Rows, out: Path) -> int:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ConfigError(
            "Parquet files need pyarrow, which is not installed",
            "pip install 'art-core[parquet]', or export as csv or jsonl.",
        ) from error
    keys, count = _keys(rows), 0
    numbers = [pa.field(name, pa.int64()) for name in FIELDS[:3]]
    when = [pa.field("split", pa.string()), pa.field("recorded_at", pa.timestamp("us", tz="UTC"))]
    schema = pa.schema([*numbers, *when, *(pa.field(key, pa.float64()) for key in keys)])
    with pq.ParquetWriter(out, schema) as writer:
        for batch in _batches(rows()):
            records = [dict(zip(FIELDS, _typed(r), strict=True)) | r.metrics for r in batch]
            writer.write_table(pa.Table.from_pylist(records, schema=schema))
            count += len(batch)
    return count


def _typed(row: MetricsRow) -> list[Any]:
    """Return a row's envelope; ConfigError where a value is not of its column's type."""
    for name in FIELDS[:3]:
        value = getattr(row, name)
        if not isinstance(value, int) or not -(1 << 63) <= value < 1 << 63:
            raise ConfigError(
                f"a row of step {row.step} has the {name} {value!r:.40}, and Parquet takes "
                "only whole numbers of 64 bits",
                "Export it as csv.",
            )
    if not isinstance(row.split, str):
        raise ConfigError(f"a row of step {row.step} has the split {row.split!r:.40}, not a text")
    return _envelope(row)


def _batches(rows: Iterator[MetricsRow]) -> Iterator[list[MetricsRow]]:
    batch: list[MetricsRow] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _ROWS_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


FORMATS: dict[str, Callable[[Rows, Path], int]] = {
    "csv": _csv,
    "parquet": _parquet,
    "jsonl": _jsonl,
}
