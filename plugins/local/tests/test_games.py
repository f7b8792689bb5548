"""The games among the examples on a CPU: real weights, a real endpoint, an older step beside."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from judge_server import judging

from art_core.log.reader import LoggedRun

EXAMPLES = Path(__file__).parents[3] / "examples"

pytestmark = pytest.mark.torch


@pytest.fixture
def program(monkeypatch, tmp_path, tiny_directory):
    """Run an example as a program on a tiny model, and return the run that it logged."""
    pytest.importorskip("plotext")
    monkeypatch.setenv("ART_DIR", str(tmp_path))
    monkeypatch.setenv("ART_SINKS", "")

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, "--base-model", str(tiny_directory), *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        (found,) = [path for path in tmp_path.glob("*/models/*") if path.name != "writer"]
        return LoggedRun(found)

    return run


def test_2048_trains_on_a_cpu(program):
    run = program("game_2048.py", "--steps", "1")
    assert run.last_row().metrics["data/step_num_trajectories"] == 32
    assert run.curve("reward/moves").keys() == {1}


def test_tic_tac_toe_plays_against_an_older_step_on_a_cpu(program):
    run = program("tic_tac_toe.py", "--steps", "3", "--random-steps", "2")
    assert run.curve("data/step_num_examples").keys() == {1}  # the lessons
    assert run.curve("reward/mean").keys() == {2, 3}
    for split in ("random", "older"):
        assert run.curve(f"{split}/reward").keys() == {0, 3}
    assert run.curve("data/prefix_breaks") == {2: 0, 3: 0}


def test_temporal_clue_trains_on_a_cpu(program):
    run = program("temporal_clue.py", "--steps", "1")
    assert run.last_row().metrics["data/step_num_trajectories"] == 48
    assert run.curve("reward/who").keys() == {1}


def test_codenames_trains_on_a_cpu(program):
    run = program("codenames.py", "--steps", "1")
    assert run.last_row().metrics["data/step_num_trajectories"] >= 48
    assert run.curve("reward/spymaster").keys() == {1}


def test_auto_rl_trains_on_a_cpu_beside_a_scripted_writer_and_judge(program, monkeypatch):
    judge = runpy.run_path(str(EXAMPLES.parent / "docs" / "judge.py"), run_name="judge")

    def answer(request):
        if request["model"] == "writer":
            return "\n".join(f"{n}. Why is the sky number {n} blue?" for n in range(1, 13))
        return judge["verdict"](request)

    with judging(answer) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        sizes = ["--steps", "1", "--scenarios", "4"]
        run = program("auto_rl.py", "--writer", "writer", *sizes)
    assert run.curve("reward/mean").keys() == {1}
    assert run.curve("val/reward").keys() == {0, 1}
