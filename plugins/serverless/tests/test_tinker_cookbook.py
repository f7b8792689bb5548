"""A recipe of Tinker's cookbook runs unchanged on `art serve`; `make client` installs it.

The recipe asks for a model and for data of the hub. It finds both in its directory instead: the
tokenizer of the model that the server has under that name, and questions in GSM8K's form.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tinker_server import KEY, tinker_server

import art_core as art

PYTHON = os.environ.get("ART_TINKER_COOKBOOK", "")
MODEL = "Qwen/Qwen3-4B-Instruct-2507"
"""A name of the recipe's own list, whose chat format is that of the model that is served."""
README = """---
configs:
- config_name: main
  data_files:
  - {split: train, path: main/train.jsonl}
  - {split: test, path: main/test.jsonl}
---
"""
pytestmark = [
    pytest.mark.torch,
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not PYTHON, reason="ART_TINKER_COOKBOOK names no Python"),
]
STEPS = 3


@pytest.fixture(scope="module")
def base_model():
    from art_local.models import resolve_base_model

    return resolve_base_model("HuggingFaceTB/SmolLM2-135M-Instruct", progress=False)


def write_questions(place: Path):
    """Write sums that state their answer: the model is small, and copies it sometimes."""
    (place / "main").mkdir(parents=True)
    (place / "README.md").write_text(README)
    rows = [
        {
            "question": f"What is {a} + {b}? The answer is \\boxed{{{a + b}}}.",
            "answer": f"{a} + {b} = {a + b}\n#### {a + b}",
        }
        for a, b in ((n % 3 + 1, n % 2 + 1) for n in range(24))
    ]
    for split in ("train", "test"):
        (place / "main" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture(scope="module")
def trained(base_model, tmp_path_factory):
    """Run the recipe's program; return its metrics, its checkpoints and the server's directory."""
    place = tmp_path_factory.mktemp("recipe")
    write_questions(place / "openai" / "gsm8k")
    tokenizer = place / MODEL
    tokenizer.mkdir(parents=True)
    for file in base_model.glob("*.json*"):
        if "safetensors" not in file.name:
            shutil.copy(file, tokenizer)
    for file in base_model.glob("*.jinja"):
        shutil.copy(file, tokenizer)
    with tinker_server(place / "served", {MODEL: str(base_model)}) as server:
        command = [
            *(PYTHON, "-m", "tinker_cookbook.recipes.rl_loop", f"base_url={server.url}"),
            *(f"model_name={MODEL}", "batch_size=2", "group_size=8", "max_tokens=20"),
            *("learning_rate=1e-4", "lora_rank=8", f"max_steps={STEPS}", "save_every=2"),
            f"log_path={place / 'log'}",
        ]
        offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(place / "hub"), "TINKER_API_KEY": KEY}
        ran = subprocess.run(
            command,
            check=False,
            cwd=place,
            env={**os.environ, **offline},
            capture_output=True,
            text=True,
            timeout=1200,
        )
    assert ran.returncode == 0, ran.stderr[-6000:]
    return place


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_recipe_trains_and_its_rows_are_priced(trained):
    metrics = lines(trained / "log" / "metrics.jsonl")
    assert len(metrics) == STEPS
    assert all(0 <= row["reward/total"] <= 1 for row in metrics)
    (run,) = (trained / "served" / "tinker" / "models").glob("*.train.0")
    rows = [row for row in lines(run / "history.jsonl") if "loss/train" in row]
    steps = [row for row in metrics if "costs/gpu" in row]
    assert 0 < len(rows) == len(steps)
    assert [row["costs/gpu"] for row in rows] == [row["costs/gpu"] for row in steps]
    # a second of the device costs a dollar; sampling is in it, and is longer than training
    assert all(row["costs/gpu"] > row["time/step_trainer_s"] > 0 for row in rows)
    total = sum(row.get("costs/gpu", 0.0) for row in lines(run / "history.jsonl"))
    assert art.open_run(run).costs().total["all"] == pytest.approx(total)


def test_art_show_has_the_costs_of_the_recipe(trained):
    (run,) = (trained / "served" / "tinker" / "models").glob("*.train.0")
    command = [sys.executable, "-m", "art_core", "show", str(run)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "$ a step" in shown
    assert "gpu" in shown


def test_its_checkpoints_are_on_the_server(trained):
    kept = lines(trained / "log" / "checkpoints.jsonl")
    assert [each["name"] for each in kept] == ["000002", "final"]
    models = trained / "served" / "tinker" / "models"
    for each in kept:
        run, kind, name = each["state_path"].removeprefix("tinker://").split("/")
        assert (models / run.replace(":", ".") / kind / name / "optimizer.safetensors").exists()
