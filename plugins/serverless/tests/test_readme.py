"""The example of the README, typed off and run."""

from __future__ import annotations

from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_example_of_the_readme_runs(serving, run_example_of, monkeypatch):
    monkeypatch.setenv("ART_BASE_URL", serving().url)
    monkeypatch.setenv("ART_API_KEY", "a key of the tests")
    model = "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert run_example_of(README, model, model) == [1, 2, 3, 4]
