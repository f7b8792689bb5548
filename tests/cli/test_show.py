from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import art_core as art
from art_core.cli.sparkline import sparkline

ROWS = (
    {
        "reward/mean": 0.0,
        "data/step_actor_tokens": 100.0,
        "time/step_actor_s": 2.0,
        "costs/all": 3.0,
        "costs/cum/all": 3.0,
        "costs/cum/gpu": 3.0,
    },
    {
        "reward/mean": 1.0,
        "data/step_actor_tokens": 100.0,
        "time/step_actor_s": 1.0,
        "costs/cum/all": 4.0,
        "costs/cum/gpu": 3.0,
        "costs/cum/train": 1.0,
        "costs/cum/train/judge": 0.25,
        "costs/cum/train/tools": 0.75,
    },
)


def test_curves_are_sparklines_with_their_ends(shelf, art_command):
    shelf.run("a", *ROWS)
    lines = [line.split() for line in art_command("show", "a").splitlines()]
    assert ["reward", "▁█", "0", "1", "0", "1"] in lines
    assert ["actor", "tok/s", "▁█", "50", "100", "50", "100"] in lines


def test_one_line_has_the_share_of_dollars_that_taught_and_the_largest_waste(shelf, art_command):
    shelf.run("b", {"signal/cum/learned": 1.0, "signal/cum/wasted/no_spread": 2.0,
                    "signal/cum/wasted/stale": 0.25, "signal/cum/evaluation": 0.75})  # fmt: skip
    line = "25 % of $4.00 taught; the largest waste: no spread, $2.00"
    assert art_command("show", "b").splitlines()[2] == line
    shelf.run("c", {"signal/cum/learned": 1.0})
    assert art_command("show", "c").splitlines()[2] == "100 % of $1.00 taught"
    shelf.run("cents", {"signal/cum/learned": 0.002, "signal/cum/wasted/failed": 0.0007})
    line = "74 % of $0.0027 taught; the largest waste: failed, $0.0007"
    assert art_command("show", "cents").splitlines()[2] == line
    shelf.run("d", {"signal/cum/learned": 0.0})
    assert "taught" not in art_command("show", "d")


def test_a_run_that_failed_says_why_where_it_is_known(shelf, art_command):
    directory = shelf.run("a", *ROWS, status="failed")
    assert art_command("show", "a").splitlines()[1].startswith("step 2, ")
    (directory / "status.json").write_text('{"status": "failed", "reason": "ValueError: bad"}')
    assert art_command("show", "a").splitlines()[1] == "ValueError: bad"


def test_what_a_step_cost_counts_its_evaluation_too(shelf, art_command):
    rows = ({"costs/all": usd, "costs/cum/all": 0.0} for usd in (1.0, 2.0, 1.0))
    directory = shelf.run("a", *rows)
    log = directory / "history.jsonl"
    late = log.read_text().splitlines()[-1].replace('"seq":3', '"seq":4')
    late = late.replace('"step":3', '"step":2').replace('"train"', '"val"').replace("1.0", "5.0")
    with log.open("a") as file:
        file.write(late + "\n")
    (spent,) = [x for x in art_command("show", "a").splitlines() if x.startswith("$ a step")]
    assert spent.split()[3:] == ["▁█▁", "1", "1", "1", "7"]


def test_the_heading_tells_which_run_and_how_far(shelf, art_command):
    directory = shelf.run("a", *ROWS)
    first, second, *_ = art_command("show", "demo/a").splitlines()
    assert first == f"demo/a  finished  {directory}"
    assert second == "step 2, 2 rows, attempt 1"


def test_a_fork_shows_its_parent_and_what_that_had_cost(shelf, art_command):
    directory = shelf.run("fork", {"reward/mean": 0.5, "costs/all": 1.0, "costs/cum/all": 1.0})
    parent = {"run": "demo/first", "path": "x", "step": 3, "costs": {"all": 1.5}}
    (directory / "parent.json").write_text(json.dumps({"parents": [parent]}))
    shown = art_command("show", "fork")
    assert "from demo/first at step 3, which had cost $1.5000 (not counted here)" in shown
    assert art.open_run(directory).parents() == [parent]


def test_costs_are_a_tree_with_shares_of_the_whole_run(shelf, art_command):
    directory = shelf.run("a", *ROWS)
    assert art_command("show", str(directory)).splitlines()[-6:] == [
        "the run's costs         $  share",
        "costs            4.000000   100%",
        "├─ gpu           3.000000    75%",
        "└─ train         1.000000    25%",
        "   ├─ tools      0.750000    19%",
        "   └─ judge      0.250000     6%",
    ]


def test_a_run_that_cost_nothing_has_no_shares(shelf, art_command):
    shelf.run("a", {"reward/mean": 1.0, "costs/cum/all": 0.0, "costs/cum/gpu": 0.0})
    assert art_command("show", "a").splitlines()[-2].split() == ["costs", "0.000000", "-"]


def test_a_run_without_costs_says_so(shelf, art_command):
    shelf.run("a", {"reward/mean": 1.0})
    assert art_command("show", "a").endswith("no costs were recorded\n")


def test_a_run_without_rows_says_so(shelf, art_command):
    shelf.run("a")
    assert art_command("show", "a").splitlines()[1:] == ["no rows yet"]


def test_a_run_without_metrics_says_so(shelf, art_command):
    shelf.run("a", {})
    assert "no metric was logged" in art_command("show", "a")


def test_metrics_of_ones_own_stand_below_those_of_the_core(shelf, art_command):
    own = {"reward/correct": 0.5, "train/mine": 1.0, "val/judge": 2.0, "own/x": 3.0}
    shelf.run("a", {"reward/mean": 1.0, "costs/own": 1.0, "data/cum/own": 1.0, **own})
    curves = [line.split()[0] for line in art_command("show", "a").splitlines()[4:] if line]
    assert curves[:5] == ["reward", *sorted(own)]
    assert "costs/own" not in curves and "data/cum/own" not in curves


def test_a_later_row_of_a_step_replaces_an_earlier_one(shelf, art_command):
    directory = shelf.run("a", {"reward/mean": 0.5})
    line = (directory / "history.jsonl").read_text().replace('"seq":1', '"seq":2')
    with (directory / "history.jsonl").open("a") as file:
        file.write(line.replace("0.5", "0.7"))
    (reward,) = [x for x in art_command("show", "a").splitlines() if x.startswith("reward")]
    assert reward.split() == ["reward", "▁", "0.7", "0.7", "0.7", "0.7"]


def test_names_of_former_releases_are_the_same_curves(shelf, art_command):
    shelf.run(
        "old", {"train/reward": 0.0, "data/step_rollout_tokens": 10.0, "time/step_rollout_s": 2.0}
    )
    printed = art_command("show", "old")
    assert "reward " in printed
    assert "actor tok/s" in printed


def test_a_line_that_is_no_row_is_passed_over(shelf, art_command, caplog):
    directory = shelf.run("a", {"reward/mean": 0.5})
    with (directory / "history.jsonl").open("ab") as file:
        file.write(b"garbage\n\n")
    assert "step 1, 1 row" in art_command("show", "a")
    assert "not a row" in caplog.text


def test_a_run_s_name_that_is_misspelt_gets_the_nearest(shelf, art_error):
    shelf.run("agent-001", *ROWS)
    assert "Did you mean 'demo/agent-001'?" in art_error("show", "demo/agent-01")


def test_a_sparkline_runs_from_lowest_to_highest():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"


def test_equal_values_are_a_flat_line():
    assert sparkline([2.0, 2.0]) == "▁▁"


def test_many_values_are_averaged_in_bins():
    assert sparkline([0, 2, 4, 6], width=2) == "▁█"


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1), st.integers(1, 60))
def test_any_finite_values_fit_in_the_width(values, width):
    assert len(sparkline(values, width)) == min(len(values), width)


@pytest.mark.parametrize("rows", [1, 200])
def test_a_run_of_any_length_fits_a_terminal(shelf, art_command, rows):
    shelf.run("a", *({"reward/mean": float(n)} for n in range(rows)))
    assert max(map(len, art_command("show", "a").splitlines()[2:])) < 100


@pytest.mark.parametrize("command", ["show", "costs"])
def test_a_foreign_row_s_odd_envelope_stops_no_report(shelf, art_command, command):
    log = shelf.run("a") / "history.jsonl"
    odd = {"seq": '"x"', "attempt": '"b"', "split": "5", "step": "99999999999999999999"}
    for name, value in odd.items():
        row = {"step": "1", "split": '"train"'} | {name: value}
        line = ",".join(f'"{key}":{text}' for key, text in row.items())
        with log.open("a") as file:
            file.write(
                f'{{{line},"recorded_at":"2026-01-01T00:00:00","reward/mean":1,"costs/cum/":1}}\n'
            )
    assert "demo/a" in art_command(command, "a") or "no costs" in art_command(command, "a")
