from __future__ import annotations

import json

from art_core.cli.main import main
from art_core.testing.sick_runs import healthy_run, sick_run


def write(shelf, name, run):
    (shelf.run(name) / "history.jsonl").write_bytes(run.lines())


def test_findings_have_onset_cost_numbers_and_what_to_change(shelf, art_command):
    write(shelf, "a", sick_run("truncation", 3))
    lines = art_command("doctor", "a").splitlines()
    assert lines[0].startswith("demo/a: 1 finding (14 rules, ")
    assert lines[2].startswith("truncation: from step ") and ", $" in lines[2]
    assert lines[3].endswith("% of the attempts are cut off by max_tokens (limit 20%).")
    assert lines[4] == "  Raise max_tokens, or let the reward count length."
    assert lines[5] == "  See data/step_num_truncated."


def test_json_has_the_findings_with_their_numbers(shelf, art_command):
    write(shelf, "a", sick_run("staleness", 3))
    document = json.loads(art_command("doctor", "a", "--rule", "staleness", "--json"))
    (finding,) = document["findings"]
    assert (finding["rule"], finding["until"]) == ("staleness", None)
    assert finding["numbers"]["limit"] == 4.0
    assert document["rules"] == ["staleness"]


def test_a_healthy_run_has_none(shelf, art_command):
    write(shelf, "a", healthy_run(1))
    assert ": 0 findings (14 rules, " in art_command("doctor", "a", "--fail")


def test_a_problem_that_ended_has_its_last_step_and_a_run_without_costs_no_dollars(
    shelf, art_command
):
    rates = [0.5] * 20 + [0.0] * 20
    shelf.run("a", *({"reward/mean": 0.1, "reward/exception_rate": rate} for rate in rates))
    assert art_command("doctor", "a").splitlines()[2] == "failing-rollouts: from step 1 to 20"


def test_a_finding_fails_when_that_is_asked_for(shelf, capsys):
    write(shelf, "a", sick_run("truncation", 3))
    assert main(["doctor", "a"]) == 0
    assert main(["doctor", "a", "--fail"]) == 1


def test_an_unknown_rule_is_an_error_with_the_nearest(shelf, art_error):
    shelf.run("a")
    assert "truncation" in art_error("doctor", "a", "--rule", "truncatoin")
