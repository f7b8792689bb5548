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
from itertools import pairwise
from typing import BinaryIO

import attrs
from orjson import JSONDecodeError, dumps, loads

from art_core.log.summary_page import Entry, Summary, better_values
from art_core.log.timeline import adds_up
from art_core.metrics.row import SCHEMA
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
    columns = {
        key: _Column(_needle(key), whole or sums, sums)
        for key, whole in asked.items()
        for sums in [adds_up(key, taxonomy)]
    }
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
        page = rows.page()
    except (_OtherFormError, JSONDecodeError, LookupError):
        return None
    page.asked = dict(asked)
    for key, column in columns.items():
        if column.found:
            page.metrics[key] = column.entry(better_values(key, taxonomy))
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

    def page(self) -> Summary:
        """Return the page without its metrics.

        Raises JSONDecodeError or LookupError for an end that is no row, and _OtherFormError where
        rows may change older steps.
        """
        if self.steps != sorted(self.steps) or self._repeats_a_step():
            raise _OtherFormError
        return Summary(
            offset=self.size,
            rows=len(self.steps),
            attempt=int(self.attempts[-1]),
            step=self.steps[-1],
            highest_step=self.steps[-1],
            started=str(loads(self.first)["recorded_at"]),
            ended=str(loads(self.last)["recorded_at"]),
        )

    def _repeats_a_step(self) -> bool:
        """Return whether an attempt begins at the last step of the one before it."""
        if len(set(self.attempts)) == 1:
            return False
        both = zip(pairwise(self.attempts), pairwise(self.steps), strict=True)
        return any(one != other and step == then for (one, other), (step, then) in both)


@attrs.define
class _Column:
    """A metric's values, NaN where one was not finite; if not `whole`, some of the newest ones.
    `sums` says that it is summed over the rows of a step.
    """

    needle: bytes
    whole: bool
    sums: bool
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

    def entry(self, better: Direction | None) -> Entry:
        """Return the metric in the run."""
        if not self.whole:
            return Entry(better, math.nan, self.values[-1])
        values, steps = self._by_step()
        entry = Entry(better, values[0], values[-1], steps[0], steps[-1])
        if better and values[:-1]:
            best = min(values[:-1]) if better == "lower" else max(values[:-1])
            entry.take(best, steps[values.index(best)])
        if math.isnan(self.values[-1]):
            entry.add_nonfinite(self.steps[-1])
        return entry

    def _by_step(self) -> tuple[list[float], list[int]]:
        """Return the finite values with their steps: of each step the newest, or the sum."""
        if len(set(self.steps)) == len(self.steps) and not any(map(math.isnan, self.values)):
            return self.values, self.steps
        curve: dict[int, float] = {}
        for value, step in zip(self.values, self.steps, strict=True):
            if not math.isnan(value):
                curve[step] = curve.get(step, 0.0) + value if self.sums else value
        return list(curve.values()), list(curve)


def _number(text: bytes) -> float:
    """Return a value; NaN for text, which is how a row holds what was not finite."""
    try:
        return math.nan if text.startswith(b'"') else float(text)
    except ValueError:
        raise _OtherFormError from None
