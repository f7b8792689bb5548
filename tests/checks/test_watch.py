"""The doctor during a run: new findings once, also if rows come again or are replaced."""

from __future__ import annotations

import logging

import attrs
import pytest

import art_core as art
from art_core.checks.rules import RULES
from art_core.checks.watch import id_of, steps_between
from art_core.testing.sick_runs import healthy_run, sick_run

HIGH = 0.5


def failing(curves):
    """Find the last stretch of failing steps, from its third step on."""
    flags = [rate >= HIGH for rate in curves.column("reward/exception_rate")]
    ends = [place for place, flag in enumerate(flags) if flag]
    if len(ends) >= 3:
        first = last = ends[-1]
        while first and flags[first - 1]:
            first -= 1
        if last - first >= 2:
            until = None if last == len(flags) - 1 else curves.steps[last]
            yield art.Finding(
                rule="fails",
                onset=curves.steps[first],
                until=until,
                problem="p",
                metric="m",
                change="c",
            )


RULE = art.CheckSpec(name="fails", check=failing, summary="")


@pytest.fixture
def run(tmp_path):
    return art.RunInfo(project="p", name="m", run_dir=tmp_path, sink="doctor")


def row(seq, rate, step=None, attempt=1):
    metrics = {"reward/mean": 0.1, "reward/exception_rate": rate}
    first = healthy_run(1).rows[0]
    step = seq if step is None else step
    return attrs.evolve(first, seq=seq, step=step, attempt=attempt, metrics=metrics)


def rows(*rates, first=1):
    return [row(first + place, rate) for place, rate in enumerate(rates)]


def watched(run, given, rules=(RULE,), watch=None):
    """Give rows one by one; return (step, rule) of each new finding."""
    watch = watch or art.Watch(run, rules)
    found = []
    for each in given:
        watch.add([each])
        if watch.is_due:
            found += [(each.step, finding.rule) for finding in watch.new_findings()]
            watch.keep()
    return found


def test_a_finding_is_new_once_when_it_is_there_first(run):
    assert watched(run, rows(0, 0, 1, 1, 1, 1, 1)) == [(5, "fails")]


def test_a_short_pause_is_the_same_problem_and_a_long_one_a_new_one(run):
    short = [0, 1, 1, 1, *[0] * 5, 1, 1, 1]
    assert watched(run, rows(*short)) == [(4, "fails")]
    later = rows(*[0] * 12, 1, 1, 1, first=13)
    assert watched(run, [*rows(*short), *later]) == [(27, "fails")]


def test_rows_that_come_again_find_nothing_new_in_the_same_process_and_a_later_one(run):
    given = rows(0, 1, 1, 1, 1)
    watch = art.Watch(run, [RULE])
    assert watched(run, given, watch=watch) == [(4, "fails")]
    assert watched(run, given, watch=watch) == []
    assert watched(run, given) == []
    assert watched(run, rows(1, 1, first=6)) == []


def test_a_later_process_reads_the_rows_before_its_first_from_the_log(run):
    given = rows(0, 1, 1, 1)
    (run.run_dir / "history.jsonl").write_bytes(b"".join(each.to_line() for each in given))
    assert watched(run, given[3:]) == [(4, "fails")]


def test_the_log_before_may_end_before_the_first_row(run):
    given = rows(0, 1, 1, 1)
    (run.run_dir / "history.jsonl").write_bytes(b"".join(each.to_line() for each in given[:3]))
    assert watched(run, given[3:]) == [(4, "fails")]


def test_steps_that_are_trained_again_can_have_the_problem_anew(run):
    assert watched(run, rows(0, 0, 0, 1, 1, 1, 1)) == [(6, "fails")]
    again = [row(8 + place, rate, step=3 + place, attempt=2) for place, rate in enumerate([0] * 2)]
    again += [row(10 + place, 1, step=5 + place, attempt=2) for place in range(3)]
    log = b"".join(each.to_line() for each in [*rows(0, 0, 0, 1, 1, 1, 1), *again])
    (run.run_dir / "history.jsonl").write_bytes(log)
    assert watched(run, again) == [(7, "fails")]


def test_a_problem_that_began_before_the_steps_that_are_trained_again_goes_on(run):
    first = rows(0, 1, 1, 1, 1, 1, 1)
    again = [row(8 + place, 1, step=5 + place, attempt=2) for place in range(3)]
    assert watched(run, [*first, *again]) == [(4, "fails")]


def test_a_log_that_was_begun_again_has_nothing_reported(run):
    given = rows(0, 1, 1, 1, 1)
    assert watched(run, given) == [(4, "fails")]
    (run.run_dir / "history.jsonl").write_bytes(b"".join(each.to_line() for each in given[:4]))
    assert watched(run, given[:4]) == [(4, "fails")]


def test_rows_without_a_number_are_those_of_art_and_all_count(run):
    given = [attrs.evolve(each, seq=0) for each in rows(0, 1, 1, 1)]
    assert watched(run, given) == [(4, "fails")]


def test_a_file_that_is_not_its_own_counts_as_nothing_reported(run):
    (run.run_dir / "sinks").mkdir()
    (run.run_dir / "sinks" / "doctor.findings.json").write_text('{"reported": 1}')
    assert watched(run, rows(1, 1, 1)) == [(3, "fails")]


def test_a_rule_that_raises_is_left_out_from_then_on_with_one_warning(run, caplog):
    calls = []

    def broken(curves):
        calls.append(len(curves.steps))
        raise RuntimeError("no column")

    rules = [art.CheckSpec(name="broken", check=broken, summary=""), RULE]
    with caplog.at_level(logging.WARNING):
        assert watched(run, rows(1, 1, 1, 1), rules) == [(3, "fails")]
    assert calls == [1]
    (record,) = caplog.records
    problem = "the rule 'broken' is left out: RuntimeError: no column"
    assert record.getMessage() == f"{problem}; it does not watch this run any more"


def test_without_rows_there_is_nothing_to_find(run):
    watch = art.Watch(run, [RULE])
    assert not watch.is_due
    assert watch.new_findings() == []


def test_a_watched_run_has_the_findings_of_the_rules_about_the_whole_log(run):
    sick = sick_run("entropy-collapse", 3)
    found = watched(run, sick.rows, RULES)
    assert [rule for _, rule in found] == ["entropy-collapse"]
    assert sick.onset <= found[0][0] <= sick.onset + 25


def test_examinations_of_a_long_run_take_time_in_proportion_to_its_steps():
    def rows_read(length):
        examined, read = 0, 0
        for steps in range(1, length + 1):
            if steps - examined >= steps_between(steps):
                examined, read = steps, read + steps
        return read

    assert [steps_between(steps) for steps in (1, 399, 400, 800, 10_000)] == [1, 1, 2, 4, 32]
    assert rows_read(10_000) < 300 * 10_000
    assert rows_read(40_000) < 4.5 * rows_read(10_000)


def test_an_id_is_that_of_a_run_a_rule_and_an_onset(run):
    finding = art.Finding(rule="fails", onset=3, problem="p", metric="m", change="c")
    assert id_of(run, finding) == "p/m/fails/3"
