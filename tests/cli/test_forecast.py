from __future__ import annotations

import json
import re

import pytest

from art_core.testing.sick_runs import healthy_run


@pytest.fixture
def growing(shelf):
    """A run whose reward rises by 0.01 a step, and whose steps cost a dollar."""
    rows = [
        {"reward/mean": 0.01 * step, "costs/gpu": 1.0, "costs/all": 1.0, "time/step_wall_s": 360.0}
        for step in range(1, 21)
    ]
    return shelf.run("a", *rows)


def test_costs_and_usage_up_to_a_step(growing, art_command):
    lines = art_command("forecast", "a", "--to-step", "30").splitlines()
    assert lines[0] == "demo/a from step 20 to 30"
    assert lines[1].split()[:5] == ["costs", "spent", "$", "more", "$"]
    assert lines[2].split()[:4] == ["all", "20.0000", "10.0000", "30.0000"]
    (clock,) = [line for line in lines if line.startswith("wall clock")]
    assert clock.split()[2:8] == ["2", "h", "1", "h", "3", "h"]
    assert lines[-1].startswith("note: the log has no receipts")


def test_json_has_each_bound_unrounded(growing, art_command):
    found = json.loads(art_command("forecast", "a", "--to-step", "30", "--json"))
    assert (found["run"], found["step"], found["to_step"]) == ("demo/a", 20, 30)
    whole = found["costs"][0]
    assert (whole["name"], whole["spent"], whole["growth"]) == ("all", 20.0, None)
    assert whole["low90"] == pytest.approx(30.0)
    assert {each["unit"] for each in found["usage"]} == {"hour", "byte"}


def test_a_reward_is_forecast_by_its_curve(growing, art_command):
    lines = art_command("forecast", "a", "--to-reward", "0.4").splitlines()
    assert lines[0].startswith("reward/mean will reach 0.4: 100% of the fitted curves reach")
    assert lines[1] == "at step 40; with 50 % at step 40 to 40, with 90 % at step 40 to 40"
    assert lines[2] == "reached at step 40 it costs $40 (90 %: $40 to $40) in all"
    assert "demo/a from step 20 to 40" in lines


def test_a_reward_that_is_reached_needs_no_forecast(growing, art_command):
    text = art_command("forecast", "a", "--to-reward", "0.1")
    assert text == "reward/mean has reached 0.1: the mean of 5 values is 0.1 at step 12\n"


def test_a_reward_out_of_reach_and_one_that_is_open(shelf, art_command):
    (shelf.run("b") / "history.jsonl").write_bytes(healthy_run(3).lines())
    text = art_command("forecast", "b", "--to-reward", "5")
    assert re.match(r"val/reward will not reach 5: \d% of the fitted curves reach 5 before", text)
    found = json.loads(art_command("forecast", "b", "--to-reward", "5", "--json"))
    assert found["reward"]["verdict"] == "not reached"
    shelf.run("few", {"reward/mean": 0.1}, {"reward/mean": 0.2})
    text = art_command("forecast", "few", "--to-reward", "0.5")
    assert text.startswith("the data do not show whether reward/mean will reach 0.5: ")


def test_a_late_bound_that_is_not_reached_is_named(shelf, art_command):
    rewards = [0.01 * step + (0.05 if step % 3 else -0.05) for step in range(1, 31)]
    shelf.run("c", *({"reward/mean": reward, "costs/all": 0.5} for reward in rewards))
    text = art_command("forecast", "c", "--to-reward", "0.7")
    assert "at step" in text
    assert "later than" in text


def test_a_run_without_costs_has_a_step(shelf, art_command):
    shelf.run("free", *({"reward/mean": 0.01 * step} for step in range(1, 21)))
    text = art_command("forecast", "free", "--to-reward", "0.4")
    assert "at step 40" in text
    assert "the log has no costs" in text
    assert "$" not in text


def test_growth_and_costs_without_a_forecast_are_shown(shelf, art_command):
    rows = [{"reward/mean": 0.5, "data/step_actor_tokens": 1000 * 1.05**step} for step in range(12)]
    rows[-1] |= {"costs/train/judge": 0.1}
    shelf.run("d", *rows)
    text = art_command("forecast", "d", "--to-step", "20")
    assert "+5.0% a step" in text
    assert "too few steps used it" in text


def test_an_empty_run_names_the_way_before_the_first_step(shelf, art_error):
    shelf.run("empty")
    line = art_error("forecast", "empty", "--to-step", "3")
    assert "has 0 trained steps; a forecast needs 2" in line
    assert "art forecast module:rollout --scenarios FILE --model NAME" in line
