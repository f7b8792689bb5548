"""Runs contracts of right and broken plugins in this process, each test of them once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import attrs
import pytest

HERE = Path(__file__).parent
OPTIONS = ["-q", "-p", "no:cacheprovider", "-p", "no:cov", "--no-header", "--rootdir", str(HERE)]


@attrs.define
class Outcomes:
    """A pytest plugin that keeps what became of each test, by class and test name."""

    found: dict[tuple[str, str], str] = attrs.field(factory=dict)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test_class, name = report.nodeid.split("::")[-2:]
        key = test_class, name.partition("[")[0]
        counts = report.when == "call" or report.outcome != "passed"
        if counts and self.found.get(key) != "failed":
            self.found[key] = report.outcome


def contracts_of(right: type, faults: Mapping[type, str], attribute: str) -> dict[str, type]:
    """Return a contract class per broken plugin, by its name."""
    return {
        f"Test{fault.__name__}": type(f"Test{fault.__name__}", (right,), {attribute: fault})
        for fault in faults
    }


def run(file: Path, tests: Iterable[str]) -> dict[tuple[str, str], str]:
    """Run tests of a file, such as `TestRight` or `TestBroken::test_it`; return their outcomes."""
    outcomes = Outcomes()
    chosen = [f"{file}::{test}" for test in tests]
    pytest.main([*OPTIONS, "-c", str(HERE / "pytest.ini"), *chosen], plugins=[outcomes])
    return outcomes.found
