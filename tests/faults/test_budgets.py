"""Dollars that a killed process had reserved are neither forgotten nor counted twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import art_core as art
from art_core.budgets.tally import read_tally

KILLED = Path(__file__).parent / "killed"


def test_after_kills_the_account_is_what_the_processes_noted(tmp_path, trials):
    command = [sys.executable, str(KILLED / "budget_spend.py"), str(tmp_path), str(trials), "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads(done.stdout)
    assert report["kills"] == trials
    assert report["processes_in_the_file"] > 0
    assert report["wrong"] == 0
    assert report["difference"] < 1e-6
    assert report["difference_after_opening"] < 1e-6


# A step is a dollar of training and two calls of a dollar. After one step the next one is bounded
# by 6 dollars (twice the first), and a call by its request: bytes of the question, an answer of 1.
@pytest.mark.parametrize(
    ("point", "spent", "reserved"),
    [
        ("call", 3.0, 6.0),  # the first call of the second step drew from the step
        ("rollout", 4.0, 5.0),  # one call was paid; its sister drew from the step, too
        ("train", 5.0, 4.0),  # both calls were paid, and no row has them
        ("row", 6.0, 0.0),  # the row is in the log: it settles the step
    ],
)
def test_a_killed_step_counts_until_the_log_shows_it(tmp_path, point, spent, reserved):
    command = [sys.executable, str(KILLED / "budget_run.py"), str(tmp_path), point]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == -9, done.stderr[-4000:]
    model = art.Model(
        name="m", project="p", base_path=tmp_path, sinks=[], budget=art.budget(usd=1000)
    )
    for _ in range(2):  # opened a second time, it is the same
        assert model.run
        account = model.metrics_builder().budget.account
        assert account.spent == pytest.approx(spent, abs=0.2)
        assert account.tally.reserved == pytest.approx(reserved, abs=0.2)
        model.run.close()
        tally = read_tally(model.run_dir / "budget.jsonl")
        assert tally is not None
        assert tally.spent == pytest.approx(spent, abs=0.2)
        model = art.Model(
            name="m", project="p", base_path=tmp_path, sinks=[], budget=art.budget(usd=1000)
        )
