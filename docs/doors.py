"""Runs `tests/doors` with the real clients, and writes into the docs what each does.

`make doors` makes their environment and gives this script its Python.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE, LOCK = ROOT / "docs" / "doors.md", ROOT / "locks" / "doors.txt"
BEGIN, END = "<!-- doors -->", "<!-- end of doors -->"
CASES = ("plain", "stream", "two_turns", "tools", "parallel_tools", "forced_tool", "schema")
FORCED = ("forced_tool", "schema")
PACKAGES = {
    "agents": "openai-agents", "langchain": "langchain-core", "pydantic_ai": "pydantic-ai-slim",
}  # fmt: skip
PROTOCOLS = ("chat", "responses", "messages", "completions")


def results(file: Path) -> dict[tuple[str, str], dict[str, bool]]:
    """Return whether the tests of each client, protocol and case passed."""
    found: dict[tuple[str, str], dict[str, bool]] = {}
    for test in ET.parse(file).getroot().iter("testcase"):  # noqa: S314
        client = test.get("classname", "").rpartition("test_")[2]
        named = re.fullmatch(r"test_(\w+)\[(?:\w+-)?(\w+)\]", test.get("name", ""))
        if named is None or named[1] not in CASES:
            continue
        passed = not {child.tag for child in test} & {"failure", "error", "skipped"}
        cells = found.setdefault((client, named[2]), {})
        cells[named[1]] = cells.get(named[1], True) and passed
    return found


def table(found: dict[tuple[str, str], dict[str, bool]], versions: dict[str, str]) -> str:
    """Return a Markdown table: one line per client and protocol, one column per case."""
    heads = [case.replace("_", " ") for case in CASES]
    lines = [f"| {' | '.join(['client', 'protocol', *heads])} |", "|---" * (len(CASES) + 2) + "|"]
    for client, protocol in sorted(found, key=lambda key: (key[0], PROTOCOLS.index(key[1]))):
        package = PACKAGES.get(client, client)
        cells = [cell(case, found[client, protocol].get(case)) for case in CASES]
        line = [f"{package} {versions[package]}", protocol, *cells]
        lines.append(f"| {' | '.join(line)} |")
    return "\n".join(lines)


def cell(case: str, passed: bool | None) -> str:  # noqa: FBT001
    """Return what a cell shows."""
    if passed is None:
        return "–"
    if not passed:
        return "no"
    return "unconstrained" if case in FORCED else "yes"


def main(arguments: list[str]) -> int:
    """Write the table between the marks of the page; return the exit code of the tests."""
    python, *options = arguments
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "doors.xml"
        # The clients warn about what they deprecate, and leave connections open.
        calm = ("-W", "ignore", "-p", "no:unraisableexception", f"--junitxml={file}")
        command = [python, "-m", "pytest", "-q", *calm, "tests/doors", *options]
        # else litellm asks the network for prices
        local = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONPATH": str(ROOT)}
        ran = subprocess.run(command, cwd=ROOT, env=os.environ | local, check=False)
        found = results(file)
    versions = dict(re.findall(r"^([\w-]+)==(\S+)", LOCK.read_text(), re.MULTILINE))
    text = f"{BEGIN}\n\n{table(found, versions)}\n\n{END}"
    page = PAGE.read_text()
    PAGE.write_text(re.sub(f"{BEGIN}.*?{END}", lambda _: text, page, flags=re.DOTALL))
    return ran.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
