"""The example of the README, typed off and run."""

from __future__ import annotations

from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_example_of_the_readme_runs(installed, tiny_directory, run_example_of, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    model = "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert run_example_of(README, model, str(tiny_directory)) == [1, 2, 3, 4]
