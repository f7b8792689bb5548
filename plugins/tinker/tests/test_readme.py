"""The example of the README, typed off and run."""

from __future__ import annotations

from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_example_of_the_readme_runs(account, run_example_of):
    assert run_example_of(README, "Qwen/Qwen3-4B-Instruct-2507", "tiny/base") == [1, 2, 3, 4]
