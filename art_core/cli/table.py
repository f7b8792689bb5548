"""Tables of text that fit the terminal."""

from __future__ import annotations

import itertools
import re
import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from art_core.hooks.commands import Column, Table

_GAP = "  "
_LEAST_PROSE = 24
_LEAST_NAME = 16
_BREAKS = re.compile(r"(?<=[/_ ])|(?=[.])")


def table_lines(table: Table, width: int) -> Iterator[str]:
    """Yield a table's lines, no wider than `width` if possible.

    Prose is wrapped first, then headings; then names are shortened with an ellipsis. If that is
    not enough, columns are left out, and a line below the table names them.
    """
    if not table.rows:
        if table.empty:
            yield table.empty
        return
    cells = [
        [_cell(column, row.get(column.key) if column.key else row) for column in table.columns]
        for row in table.rows
    ]
    columns = [
        _Fitted(column, [line[i] for line in cells]) for i, column in enumerate(table.columns)
    ]
    shown, left_out = _fit(columns, width)
    yield from _lines([column.heading_lines() for column in shown], shown)
    for n in range(len(table.rows)):
        yield from _lines([column.cell_lines(n) for column in shown], shown)
    if left_out:
        names = ", ".join(column.spec.title for column in left_out)
        yield f"(left out: {names}; a wider terminal shows them, and --json)"


class _Fitted:
    """A column's cells and its width."""

    def __init__(self, spec: Column, cells: Sequence[str]) -> None:
        self.spec, self.cells = spec, cells
        self.pieces = _BREAKS.split(spec.title)
        widest = max(map(_width, cells))
        self.width = max(widest, _width(spec.title))
        longest_piece = max(map(_width, self.pieces))
        if spec.right or spec.whole:
            self.least = max(widest, longest_piece)
        else:
            least = _LEAST_PROSE if spec.wrap else _LEAST_NAME
            self.least = min(self.width, max(least, longest_piece))

    @property
    def order(self) -> int:
        """The rank by which columns shrink: prose first, then headings of numbers, then names."""
        return 0 if self.spec.wrap else 1 if self.spec.right or self.spec.whole else 2

    def heading_lines(self) -> list[str]:
        """Return the heading, broken where it is wider than the column."""
        lines = [""]
        for piece in self.pieces:
            if _width(lines[-1] + piece.rstrip()) > self.width:
                lines.append("")
            lines[-1] += piece
        return [line.rstrip() for line in lines]

    def cell_lines(self, n: int) -> list[str]:
        """Return a cell, wrapped or shortened to the column's width."""
        cell = self.cells[n]
        if _width(cell) <= self.width:
            return [cell]
        if self.spec.wrap:
            has_wide_letters = _width(cell) > len(cell)
            return textwrap.wrap(cell, self.width // 2 if has_wide_letters else self.width)
        return [_shortened(cell, self.width)]

    def aligned(self, text: str) -> str:
        """Return a line of a cell with the blanks beside it."""
        blanks = " " * (self.width - _width(text))
        return blanks + text if self.spec.right else text + blanks


def _fit(columns: list[_Fitted], width: int) -> tuple[list[_Fitted], list[_Fitted]]:
    """Set the width of each column; return the shown columns and those without room."""
    shown = list(columns)

    def excess(sizes: Iterator[int]) -> int:
        return sum(sizes) + len(_GAP) * (len(shown) - 1) - width

    while excess(column.least for column in shown) > 0:
        last = max(shown, key=lambda column: (column.spec.rank, shown.index(column)))
        if last.spec.rank == 0:
            break
        shown.remove(last)
    over = excess(column.width for column in shown)
    for order in range(3):
        for column in (c for c in shown if c.order == order):
            given = max(0, min(over, column.width - column.least))
            column.width -= given
            over -= given
    return shown, [column for column in columns if column not in shown]


def _lines(cells: list[list[str]], columns: list[_Fitted]) -> Iterator[str]:
    for parts in itertools.zip_longest(*cells, fillvalue=""):
        aligned = (column.aligned(part) for part, column in zip(parts, columns, strict=True))
        yield _GAP.join(aligned).rstrip()


def _cell(column: Column, value: Any) -> str:
    if value is None:
        return column.missing
    text = column.form(value) if callable(column.form) else format(value, column.form)
    # A name with a line break, or with a terminal's control characters, stays one cell.
    return "".join(c if c.isprintable() else " " for c in text)


def _shortened(text: str, width: int) -> str:
    """Return the start and the end of a text around an ellipsis."""
    start, end = width // 2, len(text) - (width - 1) // 2
    while _width(text[:start]) > width // 2:
        start -= 1
    while _width(text[end:]) > (width - 1) // 2:
        end += 1
    return f"{text[:start]}…{text[end:]}"


def _width(text: str) -> int:
    """Return the width of a text in a terminal, where wide letters take two cells."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
