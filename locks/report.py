"""Group failing tests by the package whose version differs from the lock.

`make newest` and `make oldest` run this script with their environment's Python and the JUnit files
of their test runs: `python locks/report.py core.xml plugins.xml`. It exits with 1 if a test failed.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

LOCKS = Path(__file__).parent
OWN = "in our own code or tests"
RUNNERS = {
    "coverage",
    "hypothesis",
    "pluggy",
    "pytest",
    "pytest-asyncio",
    "pytest-timeout",
    "sybil",
}
"""Packages that run the tests: their frames and names are in most failures."""


def pinned(*files: str) -> dict[str, set[str]]:
    """Return the versions of each package in the lock; a package may have one per Python."""
    found: dict[str, set[str]] = defaultdict(set)
    for file in files or ("all.txt", "unsloth.txt"):
        for line in (LOCKS / file).read_text().splitlines():
            pin = re.match(r"([A-Za-z0-9._-]+)==([^\s;]+)", line)
            if pin:
                found[normal(pin[1])].add(pin[2])
    return dict(found)


def normal(name: str) -> str:
    """Return a package's name in its normal form (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def changed() -> dict[str, str]:
    """Return the installed packages whose version is not the lock's, each with both versions."""
    lock = pinned()
    return {
        name: f"{' or '.join(sorted(lock[name]))} -> {installed.version}"
        for installed in importlib.metadata.distributions()
        if (name := normal(installed.name)) in lock
        and installed.version.split("+")[0] not in lock[name]
    }


def modules_of(packages: Iterable[str]) -> dict[str, str]:
    """Return which of the packages each importable name belongs to."""
    wanted = set(packages)
    return {
        module: normal(name)
        for module, names in importlib.metadata.packages_distributions().items()
        for name in names
        if normal(name) in wanted
    }


def failures(files: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """Yield name and text of each test that failed."""
    for file in files:
        for case in ET.parse(file).getroot().iter("testcase"):  # noqa: S314
            texts = [
                f"{bad.get('message', '')}\n{bad.text or ''}"
                for bad in case
                if bad.tag in ("failure", "error")
            ]
            if texts:
                yield f"{case.get('classname')}::{case.get('name')}", "\n".join(texts)


def culprit(text: str, modules: Mapping[str, str]) -> str:
    """Return the changed package that a failure's text names last: by a file of its own in the
    traceback, else by its name in the message, else a package that runs tests, by a file.
    """
    in_files = re.findall(r"site-packages[/\\](\w+)", text)
    tested = {module: name for module, name in modules.items() if name not in RUNNERS}
    last = next((tested[module] for module in reversed(in_files) if module in tested), None)
    prose = re.sub(r"\S*[/\\]\S*", " ", text)  # without paths
    words = Counter(word for word in re.findall(r"\w+", prose) if word in tested)
    if last is None and words:
        last = tested[words.most_common(1)[0][0]]
    return last or next((modules[m] for m in reversed(in_files) if m in modules), OWN)


def main(arguments: list[str]) -> int:
    """Print the table of failing tests; return 1 if there are any."""
    versions = changed()
    print(f"packages that differ from the lock: {len(versions)}")
    for name, both in sorted(versions.items()):
        print(f"  {name:28} {both}")
    modules = modules_of(versions)
    groups: dict[str, list[str]] = defaultdict(list)
    for test, text in failures(map(Path, arguments)):
        groups[culprit(text, modules)].append(test)
    for name, tests in sorted(groups.items(), key=lambda item: -len(item[1])):
        print(f"\n{name} ({versions.get(name, 'no package')}): {len(tests)} failing")
        print("\n".join(f"  {test}" for test in tests))
    total = sum(map(len, groups.values()))
    print(f"\nfailing tests: {total}, in {len(groups)} groups")
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
