"""The example of the README, typed off and run."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import art_core as art

README = Path(__file__).parents[1] / "README.md"


def test_the_example_of_the_readme_runs(serving, tmp_path, monkeypatch):
    (example,) = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    script = tmp_path / "train.py"
    script.write_text(example)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ART_BASE_URL", serving().url)
    monkeypatch.setenv("ART_API_KEY", "a key of the tests")
    runpy.run_path(str(script), run_name="__main__")
    run = tmp_path / ".art" / "demo" / "models" / "agent-001"
    rows = (run / "history.jsonl").read_bytes().splitlines()
    steps = [row.step for row in map(art.MetricsRow.from_line, rows) if row.split == "train"]
    assert steps == [1, 2, 3, 4]
