"""Of a long log, some metrics alone: found by scanning its bytes, without decoding a row.

In JSON, `"reward/mean":` with no backslash before it can only be a key: inside text a quotation
mark is escaped. Rows that art-core wrote hold a metric in one of two places: as a number beside the
row's own keys, or as text in `_nonfinite`. A log with a row of another form is left to the full
reader.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import BinaryIO

import attrs
from orjson import JSONDecodeError, dumps, loads

from art_core.metrics.row import SCHEMA
from art_core.metrics.summary_page import Entry, Summary, better_values
from art_core.metrics.taxonomy import Direction, Taxonomy

# Few enough bytes to stay in the processor's cache while each metric is looked for in them.
_CHUNK = 1 << 18
# How far a metric's place in a row may move from that in the chunk's first row.
_MOVES = 256
_row = re.compile(
    rb'\{"schema":%d,"seq":\d+,"attempt":(\d+),"step":(\d+),"split":".*\}\n' % SCHEMA, re.DOTALL
).fullmatch
_VALUE = rb'("[^"]*"|[^,}]*)'
_BACKSLASH = ord("\\")


class _OtherFormError(Exception):
    """The log holds what art-core does not write."""


def scan_columns(file: BinaryIO, asked: Mapping[str, bool], taxonomy: Taxonomy) -> Summary | None:
    """Return what a log says of the metrics in `asked`; None where its rows must be decoded.

    Their newest values, and where `asked` says True the first and the best ones as well.
    """
    columns = {key: _Column(_needle(key), whole) for key, whole in asked.items()}
    former = {_needle(name) for key in asked for name in _former_names(key, taxonomy)}
    needles = _by_tail(former.union(column.needle for column in columns.values()))
    rows = _Rows()
    try:
        for lines in _whole_lines(file):
            chunk, steps = rows.take(lines)
            ended = (many for tail, many in needles.items() if tail in chunk)
            here = {needle for many in ended for needle in many if needle in chunk}
            if here & former:
                return None
            for column in columns.values():
                if column.needle in here:
                    column.take(chunk, lines, steps)
        page, since = rows.page()
    except (_OtherFormError, JSONDecodeError, LookupError):
        return None
    page.asked = dict(asked)
    for key, column in columns.items():
        if column.found:
            page.metrics[key] = column.entry(better_values(key, taxonomy), since)
    return page


def _by_tail(needles: Iterable[bytes]) -> dict[bytes, list[bytes]]:
    """Return the needles by their ends: where an end is missing, one search rules out several."""
    tails: dict[bytes, list[bytes]] = {}
    for needle in needles:
        tails.setdefault(needle[needle.rfind(b"/") :], []).append(needle)
    return tails


def _needle(key: str) -> bytes:
    return dumps(key) + b":"


def _former_names(key: str, taxonomy: Taxonomy) -> list[str]:
    """Return the other names that a row may have a metric under."""
    names = [
        old[:-1] + key[len(new) - 1 :] if old.endswith("*") else old
        for old, new in taxonomy.aliases.items()
        if new == key or (new.endswith("*") and key.startswith(new[:-1]))
    ]
    return [name for name in names if taxonomy.resolve(name) == key]


def _whole_lines(file: BinaryIO) -> Iterator[list[bytes]]:
    """Yield the log's lines, some at a time; a torn last line is left out."""
    file.seek(0)
    while lines := file.readlines(_CHUNK):
        if not lines[-1].endswith(b"\n"):
            lines.pop()
        if lines:
            yield lines


@attrs.define
class _Rows:
    """What the heads of the rows say."""

    size: int = 0
    attempts: list[bytes] = attrs.field(factory=list)
    steps: list[int] = attrs.field(factory=list)
    first: bytes = b""
    last: bytes = b""

    def take(self, lines: Sequence[bytes]) -> tuple[bytes, list[int]]:
        """Return lines as one piece, and the step of each."""
        chunk = b"".join(lines)
        heads = [_row(line) for line in lines]
        # A machine that lost power leaves blocks of zeros.
        if not all(heads) or b"\0" in chunk:
            raise _OtherFormError
        attempts, texts = zip(*[head.groups() for head in heads if head], strict=True)
        steps = list(map(int, texts))
        self.size += len(chunk)
        self.attempts += attempts
        self.steps += steps
        self.first, self.last = self.first or lines[0], lines[-1]
        return chunk, steps

    def page(self) -> tuple[Summary, float]:
        """Return the page without its metrics, and the first step that came again, else infinity.

        Raises JSONDecodeError or LookupError for an end that is no row.
        """
        current, earlier, highest, since = self.attempts[0], -1, -1, math.inf
        if len(set(self.attempts)) > 1:
            for attempt, step in zip(self.attempts, self.steps, strict=True):
                if attempt != current:
                    current, earlier = attempt, highest
                if step <= earlier:
                    since = min(since, step)
                highest = max(highest, step)
        page = Summary(
            offset=self.size,
            rows=len(self.steps),
            attempt=int(current),
            step=self.steps[-1],
            highest_step=max(self.steps),
            earlier_step=earlier,
            started=str(loads(self.first)["recorded_at"]),
            ended=str(loads(self.last)["recorded_at"]),
        )
        return page, since


@attrs.define
class _Column:
    """A metric's values, NaN where one was not finite; if not `whole`, some of the newest ones."""

    needle: bytes
    whole: bool
    found: bool = False
    values: list[float] = attrs.field(factory=list)
    steps: list[int] = attrs.field(factory=list)

    def take(self, chunk: bytes, lines: Sequence[bytes], steps: Sequence[int]) -> None:
        """Add the values in some lines, of which `chunk` is all in one piece."""
        first = 0 if self.whole else len(lines) - 1
        values, steps_of = self._in_each(lines[first:]), steps[first:]
        if not values:
            values, steps_of = self._here_and_there(chunk, steps)
        self.found = self.found or not all(map(math.isnan, values))
        self.values += values
        self.steps += steps_of

    def _in_each(self, lines: Sequence[bytes]) -> Sequence[float]:
        """Return the numbers that stand at about the same place in all the lines; else nothing."""
        needle = b"," + self.needle
        near = max(0, lines[0].find(needle) - _MOVES)
        starts = [line.find(needle, near) for line in lines]
        if min(starts) < 0:
            return ()
        size = len(needle)
        try:
            return [
                float(line[at + size : line.find(b",", at + size)])
                for line, at in zip(lines, starts, strict=True)
            ]
        except ValueError:
            return ()

    def _here_and_there(
        self, chunk: bytes, steps: Sequence[int]
    ) -> tuple[Sequence[float], Sequence[int]]:
        """Return the values in a chunk with their steps, also of a metric that few rows have."""
        values, steps_of = [], []
        row = end = 0
        for match in re.finditer(re.escape(self.needle) + _VALUE, chunk):
            row += chunk.count(b"\n", end, match.start())
            end = match.start()
            if chunk[end - 1] != _BACKSLASH:
                values.append(_number(match[1]))
                steps_of.append(steps[row])
        return values, steps_of

    def entry(self, better: Direction | None, since: float) -> Entry:
        """Return the metric in the run, where steps came again from `since` on."""
        if not self.whole:
            return Entry(better, math.nan, self.values[-1])
        first = next(value for value in self.values if not math.isnan(value))
        entry = Entry(better, first, self.values[-1])
        if better:
            values, steps = self._that_count(since)
            best = min(values) if better == "lower" else max(values)
            entry.take(best, steps[values.index(best)])
        return entry

    def _that_count(self, since: float) -> tuple[list[float], list[int]]:
        """Return the finite values with their steps, of steps from `since` on the newest alone."""
        if since == math.inf and not any(map(math.isnan, self.values)):
            return self.values, self.steps
        both = zip(self.values, self.steps, strict=True)
        finite = [(value, step) for value, step in both if not math.isnan(value)]
        newest = {step: value for value, step in finite if step >= since}
        settled = [(value, step) for value, step in finite if step < since]
        values = [*(value for value, _ in settled), *newest.values()]
        return values, [*(step for _, step in settled), *newest]


def _number(text: bytes) -> float:
    """Return a value; NaN for text, which is how a row holds what was not finite."""
    try:
        return math.nan if text.startswith(b'"') else float(text)
    except ValueError:
        raise _OtherFormError from None
