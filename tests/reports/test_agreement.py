"""All reports and sinks show the same values of one log."""

from __future__ import annotations

import json

import pytest
from current_line import CURVES, TRAINED, rows

import art_core as art
from art_core.cli.main import main
from art_core.metrics.taxonomy import builtin_taxonomy
from art_core.run.checkpoints import Retention

TAXONOMY = builtin_taxonomy()
NEWEST = {key: curve[max(curve)] for key, curve in CURVES.items()}


@pytest.fixture
def base(log, tmp_path):
    log.raw(b"".join(row.to_line() for row in rows()))
    return tmp_path


@pytest.fixture
def printed(base, capsys):
    def run(*command):
        assert main([*command, "--dir", str(base), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def test_the_line_itself(log, base):
    line = art.Timeline.of_log(log.path, TAXONOMY)
    assert line.curves() == CURVES
    assert line.trained == TRAINED
    assert line.totals == {"costs/cum/all": 5.75}


def test_art_runs(printed):
    (run,) = printed("runs")["runs"]
    assert (run["step"], run["reward"], run["cost_usd"]) == (3, NEWEST["reward/mean"], 5.75)


def test_art_runs_while_the_newest_row_is_of_training(log, printed):
    lines = log.path.read_bytes().splitlines(keepends=True)
    log.path.write_bytes(b"".join(lines[:-2]))
    (run,) = printed("runs")["runs"]
    assert (run["step"], run["reward"], run["cost_usd"]) == (3, NEWEST["reward/mean"], 5.5)


def test_art_show(printed):
    shown = printed("show", "m")
    curves = {
        c["key"]: dict(zip(c["steps"], c["values"], strict=True))
        for c in shown["curves"]
        if c["key"]
    }
    assert curves == {key: curve for key, curve in CURVES.items() if key != "costs/all"}
    (spent,) = [c for c in shown["curves"] if c["label"] == "$ a step"]
    assert dict(zip(spent["steps"], spent["values"], strict=True)) == {1: 1.25, 2: 1.5, 3: 2.0}
    assert shown["step"] == 3


@pytest.mark.parametrize("key", CURVES)
def test_art_plot(printed, key):
    (curve,) = printed("plot", "m", key)["curves"]
    assert dict(zip(curve["x"], curve["y"], strict=True)) == CURVES[key]


def test_art_costs(printed):
    costs = printed("costs", "m")
    (whole,) = costs["costs"]
    assert (whole["usd"], whole["usd_per_step"], costs["training_steps"]) == (5.75, 5.75 / 3, 3)
    reward = costs["reward"]
    assert (reward["first"], reward["last"], reward["best"]) == (0.125, 0.09375, 0.25)
    steps = printed("costs", "m", "--per-step")["steps"]
    assert {step["step"]: step["usd"] for step in steps} == CURVES["costs/all"]
    assert {step["step"] for step in steps if step["trained"]} == TRAINED


def test_art_leaderboard(printed):
    (run,) = printed("leaderboard", "--status", "all")["runs"]
    assert {key: run[key] for key in NEWEST} == NEWEST
    for key, best in (("reward/mean", 2), ("val/reward", 1), ("loss/train", 3), ("costs/all", 4)):
        assert (run[f"{key}.best"], run[f"{key}.best_step"]) == (CURVES[key][best], best)
    assert (run["step"], run["rows"], run["attempts"]) == (3, 13, 2)


def test_the_best_checkpoint(log, base):
    retention = Retention(log.path, TAXONOMY)
    assert retention.steps_to_keep([1, 2, 3], "reward/mean") == {2, 3}
    assert retention.steps_to_keep([1, 2, 3], "val/reward") == {1, 3}
    assert retention.steps_to_keep([1, 2, 3], "train/reward") == {2, 3}


def shown(base, chunks):
    """Return the curves that sinks show which get the rows in several processes."""
    run = art.RunInfo(project="demo", name="m", run_dir=base / "demo" / "models" / "m")
    curves = {}
    for chunk in chunks:
        line = art.CurrentLine(run)
        for row in [*chunk, *chunk]:
            change = line.change(row)
            if change.line is not None:
                curves = {}
                changed = change.line.values()
            else:
                changed = change.values
            for step, values in changed.items():
                for key, value in values.items():
                    curves.setdefault(key, {})[step] = value
    return curves, line.trained


@pytest.mark.parametrize("size", [1, 2, 3, 5, 13])
def test_a_sink(base, size):
    given = rows()
    chunks = [given[at : at + size] for at in range(0, len(given), size)]
    curves, trained = shown(base, chunks)
    assert curves == CURVES
    assert trained == TRAINED


def test_the_argus_sink(base):
    summary = pytest.importorskip("art_argus.summary").Summary
    run = art.RunInfo(project="demo", name="m", run_dir=base / "demo" / "models" / "m")
    found = summary.of_log(run).metrics({})
    assert {key: found[key] for key in NEWEST} == NEWEST
    assert (found["reward/mean_best"], found["reward/mean_best_step"]) == (0.25, 2)
    assert (found["train_epochs"], found["Avg_Epoch_Time"]) == (3, 170 / 3)
