"""Writes into the docs which tests of the contract each backend passes.

`make contract` runs `BackendContract` for every backend and gives this script the JUnit files:
`python docs/contract.py local=local.xml serverless=serverless.xml`.
"""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import art_core
from art_core.testing.backend import BackendContract

PAGE = Path(__file__).parent / "backends.md"
BEGIN, END = "<!-- contract -->", "<!-- end of contract -->"


def results(file: Path) -> dict[str, str]:
    """Return the outcome of each test: yes, no, or a dash if it was skipped."""
    found: dict[str, str] = {}
    for case in ET.parse(file).getroot().iter("testcase"):  # noqa: S314
        kinds = {child.tag for child in case}
        outcome = "no" if kinds & {"failure", "error"} else "–" if "skipped" in kinds else "yes"
        name = case.get("name", "").partition("[")[0]
        if found.get(name) != "no":
            found[name] = outcome
    return found


def promises() -> list[str]:
    """Return the names of the contract's tests, in the order of its parts."""
    parts = BackendContract.__bases__
    return [name for part in parts for name in vars(part) if name.startswith("test_")]


def table(files: dict[str, Path]) -> str:
    """Return a Markdown table: one line per test, one column per backend."""
    columns = {name: results(file) for name, file in files.items()}
    lines = [
        "| " + " | ".join(["", *(f"`{name}`" for name in columns)]) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for test in promises():
        sentence = test.removeprefix("test_").replace("_", " ")
        cells = [column.get(test, "–") for column in columns.values()]
        lines.append("| " + " | ".join([sentence, *cells]) + " |")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Write the table between the marks of the page."""
    files = {name: Path(file) for name, _, file in (item.partition("=") for item in arguments)}
    text = f"{BEGIN}\n\nWith art-core {art_core.__version__}:\n\n{table(files)}\n\n{END}"
    page = PAGE.read_text()
    PAGE.write_text(re.sub(f"{BEGIN}.*?{END}", lambda _: text, page, flags=re.DOTALL))


if __name__ == "__main__":
    main(sys.argv[1:])
