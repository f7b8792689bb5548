"""Runs contracts of right and broken plugins in this process, each test of them once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from textwrap import dedent

import attrs
import pytest

HERE = Path(__file__).parent
OPTIONS = [
    "-q",
    "--no-header",
    "--import-mode=importlib",
    *("-p", "no:cacheprovider"),
    *("-c", str(HERE / "pytest.ini")),
]


@attrs.define(eq=False)  # pytest keeps its plugins in a set
class Outcomes:
    """A pytest plugin that keeps what became of each test, by class and test name."""

    found: dict[tuple[str, str], str] = attrs.field(factory=dict)
    """"passed", "skipped", or what made the test fail."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test_class, name = report.nodeid.split("::")[-2:]
        key = test_class, name.partition("[")[0]
        if report.outcome == "failed":
            crash = getattr(report.longrepr, "reprcrash", None)
            self.found[key] = crash.message if crash else str(report.longrepr)
        elif report.when == "call" or report.outcome == "skipped":
            self.found.setdefault(key, report.outcome)


def contracts_of(right: type, faults: Iterable[type], attribute: str) -> dict[str, type]:
    """Return a contract class per broken plugin, by its name."""
    return {
        f"Test{fault.__name__}": type(f"Test{fault.__name__}", (right,), {attribute: fault})
        for fault in faults
    }


def run(file: Path, tests: Iterable[str]) -> dict[tuple[str, str], str]:
    """Run tests of a file, such as `TestRight` or `TestBroken::test_it`; return their outcomes."""
    outcomes = Outcomes()
    pytest.main([*OPTIONS, *(f"{file}::{test}" for test in tests)], plugins=[outcomes])
    return outcomes.found


def run_text(text: str, folder: Path, *options: str) -> tuple[int, list[str]]:
    """Run the tests in a text; return pytest's exit code and what became of each test."""
    file, outcomes = folder / "test_it.py", Outcomes()
    file.write_text(dedent(text))
    code = pytest.main([*OPTIONS, str(file), *options], plugins=[outcomes])
    return code, list(outcomes.found.values())
