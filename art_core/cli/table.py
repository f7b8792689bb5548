"""Rows of text under headings."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence


def table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[str] = ()
) -> Iterator[str]:
    """Yield lines with aligned columns; those whose heading is in `right` are aligned right."""
    lines = [headings, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    for line in lines:
        cells = [
            cell.rjust(width) if heading in right else cell.ljust(width)
            for heading, cell, width in zip(headings, line, widths, strict=True)
        ]
        yield "  ".join(cells).rstrip()
