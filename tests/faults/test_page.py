"""The page about reliability names every test of the suite, and none that is not there."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "reliability.md"


def test_the_page_names_each_fault_test_and_no_other():
    told = re.findall(r"`(test_\w+)`", PAGE.read_text())
    assert len(told) == len(set(told))
    assert set(told) >= _tests(HERE)
    elsewhere = map(_tests, (*ROOT.glob("tests/*"), *ROOT.glob("plugins/*/tests")))
    assert set(told) <= set().union(*elsewhere, _tests(ROOT / "tests"))


def _tests(directory: Path) -> set[str]:
    files = [path for path in directory.glob("test_*.py") if path.name != Path(__file__).name]
    code = "".join(path.read_text() for path in files)
    return set(re.findall(r"^(?:async )?def (test_\w+)\(", code, re.MULTILINE))
