"""Tables of the docs that benchmarks write, between two marks."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def put(name: str, script: str, text: str) -> None:
    """Put a text into a page of the docs, where the page names the script."""
    page = DOCS / name
    mark = f"<!-- written by: python benchmarks/{script} --write -->"
    found = re.compile(f"({re.escape(mark)}\n).*?(<!-- end -->)", re.DOTALL)
    fresh, places = found.subn(lambda m: f"{m[1]}\n{text}\n\n{m[2]}", page.read_text())
    if places != 1:
        raise SystemExit(f"{page} has {places} places for what {script} writes; wanted: {mark}")
    page.write_text(fresh)
