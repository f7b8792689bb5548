"""A run's log on one page: the first, last and best value of each metric, kept beside the log.

The page is brought up to date from where it ended, and made anew when it does not fit its log.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import attrs
import orjson

from art_core.files import read_json, replace_json
from art_core.metrics.taxonomy import CATALOGUE_VERSION, Direction, Taxonomy

SUMMARY_FILE = "summary.json"
_BLOCK = 1 << 18
_HEAD = 256
_VERSION = 1
_WORTH_A_PROCESS = 20 << 20


@attrs.define
class Entry:
    """A metric in a run: its first, newest and best value; NaN where the newest was not finite.

    `best` is None for sums over the run and clocks, of which the best says nothing.
    """

    better: Direction | None
    first: float
    last: float
    best: float | None = None
    best_step: int | None = None

    def take(self, value: float, step: int) -> None:
        """Keep a value if it is the best so far."""
        if self.better is None:
            return
        if self.best is None or (
            value > self.best if self.better == "higher" else value < self.best
        ):
            self.best, self.best_step = value, step


@attrs.define
class Summary:
    """What the first `offset` bytes of a log say.

    `earlier_step` is the highest step of the attempts before the newest one: a row at or below it
    repeats a step, and replaces what was said of it.
    """

    offset: int = 0
    head: int = 0
    rows: int = 0
    skipped: int = 0
    attempt: int = 0
    step: int = -1
    highest_step: int = -1
    earlier_step: int = -1
    started: str = ""
    ended: str = ""
    metrics: dict[str, Entry] = attrs.field(factory=dict)


class _RepeatedStepError(Exception):
    pass


def read_summary(history: Path, taxonomy: Taxonomy) -> Summary:
    """Return a log's summary, reading only what is new since it was last asked for, and keep it.

    A step that a later attempt repeated counts as the later attempt had it.
    """
    summary = kept_summary(history, taxonomy)
    if summary.offset == history.stat().st_size:
        return summary
    with history.open("rb") as file:
        try:
            summary = _Reader(taxonomy, summary).read(file)
        except _RepeatedStepError:
            summary = _ExactReader(taxonomy, Summary()).read(file)
        summary.head = _head(file, summary.offset)
    _keep(summary, history)
    return summary


def kept_summary(history: Path, taxonomy: Taxonomy) -> Summary:
    """Return the summary that lies beside a log; an empty one when there is none that fits it."""
    try:
        stored = read_json(history.with_name(SUMMARY_FILE))
        if stored.pop("version") != [_VERSION, CATALOGUE_VERSION]:
            return Summary()
        metrics = {k: _entry(e) for k, e in stored.pop("metrics").items()}
        summary = Summary(**stored, metrics=metrics)
        with history.open("rb") as file:
            fits = summary.head == _head(file, summary.offset)
        known = all(e.better == _better(k, taxonomy) for k, e in metrics.items())
    except (ValueError, TypeError, KeyError, AttributeError):
        return Summary()
    return summary if fits and known else Summary()


def _entry(stored: Sequence[Any]) -> Entry:
    better, first, last, best, best_step = stored
    return Entry(better, first, math.nan if last is None else last, best, best_step)


def _keep(summary: Summary, history: Path) -> None:
    page = attrs.asdict(summary, recurse=False) | {
        "version": [_VERSION, CATALOGUE_VERSION],
        "metrics": {k: attrs.astuple(e) for k, e in summary.metrics.items()},
    }
    try:
        replace_json(history.with_name(SUMMARY_FILE), page, sync=False)
    except OSError:
        # Somebody else's run: its directory may be read-only, and the page is only for speed.
        return


def _head(file: BinaryIO, offset: int) -> int:
    """Tell logs apart by a sum over the first bytes; 0 when no line of the log ends at `offset`."""
    if not offset:
        return 0
    file.seek(offset - 1)
    if file.read(1) != b"\n":
        return 0
    file.seek(0)
    return zlib.crc32(file.read(min(_HEAD, offset))) or 1


def _better(key: str, taxonomy: Taxonomy) -> Direction | None:
    """Which values of a metric are better: as the catalogue says, else higher, as of rewards."""
    spec = taxonomy.spec(key)
    if spec.derived and ("/cum/" in key or spec.unit == "s"):
        return None
    return spec.direction or "higher"


@attrs.frozen
class _Shape:
    """Rows with the same keys: how their step is called, which columns are metrics."""

    step: str
    columns: tuple[tuple[int, str, Direction | None], ...]


def _shape(keys: Sequence[str], taxonomy: Taxonomy) -> _Shape | None:
    step = next((name for name in ("step", "training_step") if name in keys), None)
    if step is None:
        return None
    named = ((i, taxonomy.resolve(key)) for i, key in enumerate(keys) if "/" in key)
    return _Shape(step, tuple((i, key, _better(key, taxonomy)) for i, key in named))


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


_NUMBERS = frozenset({int, float, bool})


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


def read_summaries(histories: Sequence[Path], taxonomy: Taxonomy) -> list[Summary]:
    """Return the summaries of many logs; a second process helps where there is much to read."""
    unread = [h.stat().st_size - kept_summary(h, taxonomy).offset for h in histories]
    processes = min(os.cpu_count() or 1, sum(unread) // _WORTH_A_PROCESS)
    read = partial(read_summary, taxonomy=taxonomy)
    if processes < 2:
        return [read(history) for history in histories]
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return list(pool.map(read, histories))
