from __future__ import annotations

import csv

import pytest


def names(printed):
    return [line.split()[1] for line in printed.splitlines()[1:]]


@pytest.fixture
def three(shelf):
    shelf.run("low", {"reward/mean": 0.9, "costs/cum/all": 1.0}, {"reward/mean": 0.25})
    shelf.run("high", {"reward/mean": 0.75, "costs/cum/all": 2.0}, {"own/x": 3.0})
    shelf.run("none", {"loss/train": 1.0})
    return shelf


def test_the_best_reward_comes_first_and_a_run_without_one_last(three, art_command):
    printed = art_command("leaderboard")
    assert names(printed) == ["demo/high", "demo/low", "demo/none"]
    heading, first, *_ = printed.splitlines()
    assert heading.split() == [
        "#", "run", "status", "step", "reward/mean", "reward/mean.best", "loss/train",
        "costs/cum/all", "reward_per_dollar",
    ]  # fmt: skip
    assert first.split() == ["1", "demo/high", "finished", "2", "0.75", "0.75", "-", "2", "0.375"]


def test_any_column_ranks_and_is_shown_with_those_asked_for(three, art_command):
    printed = art_command("leaderboard", "--sort", "train/reward.best", "--columns", "own/x, step")
    assert names(printed) == ["demo/low", "demo/high", "demo/none"]
    heading = printed.splitlines()[0].split()
    assert heading == ["#", "run", "status", "own/x", "step", "reward/mean.best"]
    assert names(art_command("leaderboard", "--sort", "costs/cum/all"))[0] == "demo/low"


def test_a_misspelt_column_gets_the_nearest(three, art_error):
    assert "Did you mean 'own/x'?" in art_error("leaderboard", "--sort", "own/xx")
    assert "Did you mean 'own/x'?" in art_error("leaderboard", "--columns", "own/xx")
    assert "Did you mean 'own/x'?" in art_error("leaderboard", "--matrix", "own/xx")


def test_runs_of_another_status_are_left_out_and_said(three, art_command):
    three.run("dead", {"reward/mean": 1.0}, status="running")
    printed = art_command("leaderboard")
    assert printed.endswith("1 run of another status left out; --status all shows them\n")
    assert "demo/dead" not in printed
    assert names(art_command("leaderboard", "--status", "all"))[0] == "demo/dead"
    assert names(art_command("leaderboard", "--status", "killed"))[0] == "demo/dead"


def test_a_matrix_has_a_cell_for_each_model_and_project(three, art_command):
    printed = art_command("leaderboard", "--matrix", "reward/mean.best")
    assert [line.split() for line in printed.splitlines()] == [
        ["model", "demo"], ["high", "0.75"], ["low", "0.9"], ["none", "-"],
    ]  # fmt: skip


def test_csv_is_wide_and_long(three, art_command):
    wide = list(csv.DictReader(art_command("leaderboard", "--csv").splitlines()))
    assert [(w["model"], w["own/x"], w["reward/mean"]) for w in wide] == [
        ("high", "3.0", "0.75"), ("low", "", "0.25"), ("none", "", ""),
    ]  # fmt: skip
    long = list(csv.DictReader(art_command("leaderboard", "--long").splitlines()))
    assert ("low", "reward/mean", "0.25", "0.9") in [
        (x["model"], x["key"], x["last"], x["best"]) for x in long
    ]


def test_several_directories_are_one_board(three, art_command, tmp_path):
    other = tmp_path / "else" / "math" / "models" / "top"
    other.mkdir(parents=True)
    (other / "history.jsonl").write_text(
        '{"step":1,"recorded_at":"2026-05-01T00:00:00","reward/mean":0.99}\n{"step":2,"re'
    )
    printed = art_command("leaderboard", str(three.path), str(tmp_path / "else"), "--status", "all")
    assert names(printed)[0] == "math/top"


def test_a_directory_without_runs_and_one_that_is_not_there(shelf, art_command, art_error):
    shelf.path.mkdir()
    where = "a run is in DIR/<project>/models/<name>"
    assert art_command("leaderboard") == f"no finished runs in {shelf.path}; {where}\n"
    assert art_command("leaderboard", "--status", "all") == f"no runs in {shelf.path}; {where}\n"
    assert "no directory /nowhere" in art_error("leaderboard", "/nowhere")


def test_a_directory_that_is_named_twice_counts_once(three, art_command):
    twice = (str(three.path), str(three.path / "demo" / ".."))
    assert art_command("leaderboard", *twice) == art_command("leaderboard")


def test_blanks_between_columns_are_left_out(three, art_command):
    plain = art_command("leaderboard", "--columns", "reward/mean,step")
    assert art_command("leaderboard", "--columns", "reward/mean,, step,") == plain


def test_a_sum_over_the_run_says_that_it_has_no_best(shelf, art_error):
    shelf.run("a", {"costs/cum/all": 1.0})
    error = art_error("leaderboard", "--sort", "costs/cum/all.best")
    assert "no column 'costs/cum/all.best': costs/cum/all has no best value. Use costs" in error


ASKED = [
    (),
    ("--sort", "val/reward.best", "--columns", "own/x,reward_per_dollar,costs/cum/all,rows"),
    ("--sort", "train/reward.best_step", "--columns", "train/reward"),
    ("--sort", "train/correct.best", "--status", "all"),
    ("--sort", "step", "--columns", "attempts"),
    ("--matrix", "loss/train.best"),
    ("--csv",),
    ("--long", "--status", "all"),
]


@pytest.mark.parametrize("asked", ASKED, ids=" ".join)
@pytest.mark.parametrize("before", [(), *ASKED[:3]], ids=" ".join)
def test_the_answer_is_the_same_with_summaries_and_without(three, art_command, asked, before):
    three.run("more", {"reward/correct": 0.5, "val/reward": 0.25}, {"own/x": 1.0})
    right = art_command("leaderboard", *asked)
    for summary in three.path.glob("*/models/*/summary.json"):
        summary.unlink()
    if before:
        art_command("leaderboard", *before)
    assert [art_command("leaderboard", *asked) for _ in range(2)] == [right, right]
