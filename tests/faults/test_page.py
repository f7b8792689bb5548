"""The page about reliability names every test of the suite, and none that is not there."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "reliability.md"


def test_the_page_names_each_fault_test_and_no_other():
    told = re.findall(r"`(test_\w+)`", PAGE.read_text())
    files = [path for path in HERE.glob("test_*.py") if path.name != Path(__file__).name]
    code = "".join(path.read_text() for path in files)
    there = re.findall(r"^(?:async )?def (test_\w+)\(", code, re.MULTILINE)
    assert len(told) == len(set(told))
    assert set(told) == set(there)
