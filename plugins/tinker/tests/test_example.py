"""The example of the repository, with nothing but another backend's name."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[3] / "examples" / "yes_no_maybe.py"


def test_the_example_runs_with_the_name_of_the_backend(account, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    pytest.importorskip("plotext")
    asked = ["--backend", "tinker", "--base-model", "tiny/base", "--steps", "1"]
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *asked])
    monkeypatch.setenv("ART_DIR", str(tmp_path))
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    printed = capsys.readouterr().out
    assert "starting at step 0" in printed
    assert "before:" in printed and "after:" in printed
    run = tmp_path / "yes-no-maybe" / "models" / "smol-001"
    assert (run / "checkpoints" / "0001" / "manifest.json").is_file()
