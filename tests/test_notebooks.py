"""The notebooks run from their start to their end, without a window."""

from __future__ import annotations

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

NOTEBOOKS = sorted((Path(__file__).parent.parent / "examples" / "notebooks").glob("*.ipynb"))
PRINTED = {
    "first_loop": ["reward/mean 0.", "finished: 1 steps cost $"],
    "read_a_run": ["read/adder finished", "step 0: 0.167 ± 0.112", "step 2: 0.500 ± 0.151"],
    "rewards_and_judges": [
        "1.0 {'right': 1.0, 'form': 0.0}",
        "contains: 'Paris, Rome' earns [1.0, 1.0]",
        "exact: 'Paris, Rome' earns [0.0, 0.0]",
        "0.2 ",
        "'costs/train/judge/style': 0.006",
    ],
}
"""Parts of what each notebook prints, in their order. A scripted model at step s knows 2 s + 2 of
12 answers."""


TRAINS = pytest.mark.slow  # it trains a real model
RUN = [pytest.param(p, marks=TRAINS if p.stem == "first_loop" else ()) for p in NOTEBOOKS]


@pytest.mark.parametrize("path", RUN, ids=lambda path: path.stem)
def test_a_notebook_runs_and_prints_what_it_describes(path, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("ART_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("ART_SINKS", "")
    monkeypatch.setenv("ART_STEPS", "2")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    if path.stem == "first_loop":
        pytest.importorskip("torch")
        from art_local.testing.tiny import save_tiny_model

        monkeypatch.setenv("ART_STEPS", "1")
        monkeypatch.setenv("ART_BASE_MODEL", str(save_tiny_model(tmp_path / "tiny")))
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=where).execute()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])
    )
    place = 0
    for part in PRINTED[path.stem]:
        assert part in printed[place:], printed
        place = printed.index(part, place)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(path):
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
