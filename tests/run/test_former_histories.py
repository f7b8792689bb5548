"""Histories that ART (openpipe-art) itself wrote, by `Model.log` of three of its releases.

Each holds the same three steps: two rollouts that are worth (0, 1), (1, 1) and (0.25, 0.75), right
when worth more than a half; an evaluation worth 0.5, 0.875 and 0.625; judges for 0.25 dollars a
step; 50 tokens trained in 4 seconds; and a last row with a bare `note`.
"""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import pytest

import art_core as art
from art_core.cli.main import main
from art_core.log.reader import find_run
from art_core.log.rows import read_rows
from art_core.metrics.taxonomy import builtin_taxonomy
from art_core.run.checkpoints import Retention

HISTORIES = sorted((Path(__file__).parents[1] / "histories").glob("art-*.jsonl"))
taxonomy = builtin_taxonomy()


@pytest.fixture(params=HISTORIES, ids=lambda path: path.stem)
def base(request, tmp_path):
    """A directory with the run `old/agent` in it."""
    directory = tmp_path / "old" / "models" / "agent"
    directory.mkdir(parents=True)
    shutil.copy(request.param, directory / "history.jsonl")
    return tmp_path


def printed(capsys, *command):
    assert main(command) == 0
    return capsys.readouterr().out


def cells(text):
    return [line.split() for line in text.splitlines()]


CURVES = {
    "reward/mean": [0.5, 1.0, 0.5],
    "reward/std_dev": [0.5, 0.0, 0.25],
    "reward/exception_rate": [0.0, 0.0, 0.0],
    "reward/correct": [0.5, 1.0, 0.5],
    "reward/group_difficulty": [0.25, 0.5, 0.75],
    "val/reward": [0.5, 0.875, 0.625],
    "val/correct": [1.0, 1.0, 1.0],
    "val/group_difficulty": [0.5, 0.5, 0.5],
    "loss/train": [1 / 2, 1 / 4, 1 / 6],
    "data/step_actor_tokens": [100.0] * 3,
    "time/step_actor_s": [2.0] * 3,
    "data/step_trainer_tokens": [50.0] * 3,
    "time/step_trainer_s": [4.0] * 3,
    "data/cum/trainer_tokens": [50.0, 100.0, 150.0],
    "time/cum/actor_s": [2.0, 4.0, 6.0],
    "throughput/avg_trainer_tok_per_s": [12.5] * 3,
    "throughput/avg_actor_tok_per_s": [50.0] * 3,
    "costs/cum/train/llm_judge/style": [0.25, 0.5, 0.75],
}


def test_each_curve_is_read_under_its_name_of_today(base):
    reading = find_run("agent", base).timeline()
    assert {key: list(reading.curve(key).values()) for key in CURVES} == CURVES
    assert reading.rows == 7


def test_a_bare_name_of_a_row_that_averages_nothing_stays_on_train(base):
    reading = find_run("agent", base).timeline()
    assert reading.curve("train/note") == {3: 3.0}
    # Beside averages of trajectories, a bare name cannot be distinguished from one of theirs.
    assert reading.curve("reward/lr_scale") == {1: 0.5, 2: 0.5, 3: 0.5}
    assert [key for key in reading.curves() if key.startswith("train/")] == ["train/note"]


def test_the_same_names_in_rows_of_ours_mean_what_they_say(tmp_path):
    model = art.Model(name="m", project="p", base_path=tmp_path, sinks=[])
    model.run.record("train", 1, metrics={"reward": 0.5, "correct": 1.0})
    model.run.close()
    curves = find_run("m", tmp_path).timeline().curves()
    assert curves["train/correct"] == {1: 1.0}
    assert "reward/correct" not in curves


async def test_unique_scenarios_go_on_from_those_that_art_counted(base):
    state = b'{"_metrics_builder_state": {"unique_scenario_ids": ["sea", "sky"]}}'
    (base / "old" / "models" / "agent" / "state.json").write_bytes(state)
    async with art.Model(name="agent", project="old", base_path=base, sinks=[]) as model:
        model.metrics_builder().add_data(scenario_ids=["sea", "moon"])
        row = await model.log(split="train")
    assert row.metrics["data/cum/num_unique_scenarios"] == 3.0


def test_art_runs_lists_the_run(base, capsys):
    (_, line) = cells(printed(capsys, "runs", "--dir", str(base)))
    assert line[:3] == ["old/agent", "3", "0.500"]
    assert float(line[3]) >= 0.75
    assert line[4] == "unknown"


def test_art_show_draws_its_curves_and_its_costs(base, capsys):
    lines = cells(printed(capsys, "show", "agent", "--dir", str(base)))
    drawn = {" ".join(line[:-5]): line[-4:] for line in lines if len(line) > 5}
    assert drawn["reward"] == ["0.5", "0.5", "0.5", "1"]
    assert drawn["val reward"] == ["0.5", "0.625", "0.5", "0.875"]
    assert drawn["actor tok/s"] == ["50"] * 4
    assert drawn["trainer tok/s"] == ["12.5"] * 4
    (style,) = [line for line in lines if "style" in line]
    assert style[-3:-1] == ["style", "0.750000"]


@pytest.mark.parametrize("asked", ["reward/correct", "train/correct"])
def test_art_leaderboard_ranks_it_under_the_old_name_and_the_new(base, capsys, asked):
    command = ("leaderboard", str(base), "--status", "all", "--columns", f"{asked}.best")
    headings, line = cells(printed(capsys, *command, "--sort", "train/reward.best"))
    assert headings[3:] == ["reward/correct.best", "reward/mean.best"]
    assert line[3:] == ["1", "1"]


def test_the_csv_has_no_column_of_a_former_name(base, capsys):
    text = printed(capsys, "leaderboard", str(base), "--status", "all", "--csv")
    (row,) = csv.DictReader(io.StringIO(text))
    assert (row["reward/mean.best_step"], row["val/reward.best_step"]) == ("2", "2")
    former = {key for key in row if taxonomy.resolve(key) != key}
    assert former == set()


@pytest.mark.parametrize(
    ("metric", "best"),
    [
        ("val/reward", 2),
        ("train/reward", 2),
        ("reward/mean", 2),
        ("train/correct", 2),
        ("reward/correct", 2),
        ("loss/train", 3),
        ("train/reward_std_dev", 1),
        ("time/step_backend_train_s", 3),
    ],
)
def test_the_best_checkpoint_is_found_by_either_name(base, metric, best):
    retention = Retention(base / "old" / "models" / "agent" / "history.jsonl", taxonomy)
    assert retention.steps_to_keep([1, 2, 3], metric) == {best, 3}


def test_a_run_that_art_began_goes_on_here_with_its_sums(base):
    model = art.Model(name="agent", project="old", base_path=base, sinks=[])
    before = find_run("agent", base).timeline().totals["costs/cum/all"]
    row = model.run.record("train", 4, metrics={"reward/mean": 0.75, "costs/gpu": 0.25})
    model.run.close()
    rows = [row for row, _ in read_rows(model.run_dir / "history.jsonl")]
    assert (len(rows), row.seq, row.attempt) == (8, 1, 1)
    assert list(find_run("agent", base).timeline().curve("reward/mean").values()) == [
        0.5, 1.0, 0.5, 0.75,
    ]  # fmt: skip
    assert row.metrics["costs/cum/all"] == pytest.approx(before + 0.25)
