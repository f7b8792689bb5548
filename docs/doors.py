"""Runs `tests/doors` with the real clients, and writes into the docs what each does.

`make doors` makes their environment and gives this script its Python.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE, LOCK = ROOT / "docs" / "doors.md", ROOT / "locks" / "doors.txt"
NPM = ROOT / "tests" / "doors" / "npm"
OURS = (".", "plugins/langgraph", "plugins/local")
TESTS = ("tests/doors", "tests/gateway/test_examples.py", "plugins/langgraph/tests")
BEGIN, END = "<!-- doors -->", "<!-- end of doors -->"
CASES = ("plain", "stream", "two_turns", "tools", "parallel_tools", "forced_tool", "schema")
PACKAGES = {
    "agents": "openai-agents", "langchain": "langchain-core", "pydantic_ai": "pydantic-ai-slim",
}  # fmt: skip
PROTOCOLS = ("chat", "responses", "messages", "completions")


def results(file: Path) -> dict[tuple[str, str], dict[str, bool]]:
    """Return whether the tests of each client, protocol and case passed, without skipped ones."""
    found: dict[tuple[str, str], dict[str, bool]] = {}
    for test in ET.parse(file).getroot().iter("testcase"):  # noqa: S314
        client = test.get("classname", "").rpartition("test_")[2]
        named = re.fullmatch(r"test_(\w+)\[(?:(\w+)-)?(\w+)\]", test.get("name", ""))
        tags = {child.tag for child in test}
        if named is None or named[1] not in CASES or "skipped" in tags:
            continue
        if client == "npm":
            client = f"npm/{named[2]}"
        cells = found.setdefault((client, named[3]), {})
        cells[named[1]] = cells.get(named[1], True) and not tags & {"failure", "error"}
    return found


def table(
    found: dict[tuple[str, str], dict[str, bool]], versions: dict[str, str], before: str
) -> str:
    """Return a Markdown table: one line per client and protocol, one column per case. Lines of
    `before` stay if their client did not run.
    """
    heads = [case.replace("_", " ") for case in CASES]
    head = [f"| {' | '.join(['client', 'protocol', *heads])} |", "|---" * (len(CASES) + 2) + "|"]
    lines = {}
    for client, protocol in sorted(found, key=lambda key: (key[0], PROTOCOLS.index(key[1]))):
        package = PACKAGES.get(client, client)
        cells = [cell(found[client, protocol].get(case)) for case in CASES]
        line = [f"{package} {versions[package]}", protocol, *cells]
        lines[package, protocol] = f"| {' | '.join(line)} |"
    for line in before.splitlines():
        if re.match(r"\| \S+ \d", line):
            _, package, _, _, protocol, *_ = line.split()
            lines.setdefault((package, protocol), line)
    order = sorted(lines, key=lambda key: (key[0], PROTOCOLS.index(key[1])))
    return "\n".join([*head, *(lines[key] for key in order)])


def cell(passed: bool | None) -> str:  # noqa: FBT001
    """Return what a cell shows."""
    if passed is None:
        return "–"
    return "yes" if passed else "no"


def install(python: str) -> None:
    """Install our own distributions without what they need, which the lock has."""
    pip = [python, "-m", "pip", "install", "-qq", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, *(f"--editable={path}" for path in OURS)], cwd=ROOT, check=True)


def packages_of_npm(place: Path) -> dict[str, str]:
    """Install the packages of npm beside a copy of their scripts; return the environment variable
    of the tests that names the place, or none if npm is not installed.
    """
    if shutil.which("npm") is None:
        return {}
    shutil.copytree(NPM, place)
    subprocess.run(["npm", "ci", "--silent"], cwd=place, check=True)  # noqa: S607
    return {"DOORS_NPM": str(place)}


def versions() -> dict[str, str]:
    """Return the locked versions of the clients by their names in the table."""
    found = dict(re.findall(r"^([\w-]+)==(\S+)", LOCK.read_text(), re.MULTILINE))
    locked = json.loads((NPM / "package-lock.json").read_text())["packages"]
    names = {path.removeprefix("node_modules/"): each["version"]
             for path, each in locked.items() if path.count("node_modules/") == 1}  # fmt: skip
    return found | {f"npm/{name}": version for name, version in names.items()}


def main(arguments: list[str]) -> int:
    """Write the table between the marks of the page; return the exit code of the tests."""
    python, *options = arguments
    install(python)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "doors.xml"
        # The clients warn about what they deprecate, and leave connections open.
        calm = ("-W", "ignore", "-p", "no:unraisableexception", f"--junitxml={file}")
        command = [python, "-m", "pytest", "-q", *calm, *TESTS, *options]
        # else litellm asks the network for prices
        local = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONPATH": str(ROOT)}
        local |= packages_of_npm(Path(folder) / "npm")
        ran = subprocess.run(command, cwd=ROOT, env=os.environ | local, check=False)
        found = results(file)
    page = PAGE.read_text()
    before = page.partition(BEGIN)[2].partition(END)[0]
    text = f"{BEGIN}\n\n{table(found, versions(), before)}\n\n{END}"
    PAGE.write_text(re.sub(f"{BEGIN}.*?{END}", lambda _: text, page, flags=re.DOTALL))
    return ran.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
