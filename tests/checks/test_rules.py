from __future__ import annotations

import math
import re

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from art_core.checks.changes import val_apart
from art_core.checks.curves import (
    EvaluatedStep,
    Purchase,
    RunCurves,
    change_of,
    last_stretch,
    purchases_of,
    smoothed,
)
from art_core.checks.examine import examine
from art_core.checks.rules import RULES
from art_core.cli.main import parser
from art_core.log.reader import LoggedRun
from art_core.pipelines.config import PipelineConfig
from art_core.rl.config import TrainConfig
from art_core.testing.sick_runs import PROBLEMS, healthy_run, sick_run

BY_NAME = {rule.name: rule for rule in RULES}
GROUPS = "data/step_num_groups_"


def curves(length, evaluations=(), usd=None, **columns):
    named = {key.replace("__", "/"): tuple(values) for key, values in columns.items()}
    return RunCurves(tuple(range(1, length + 1)), named, tuple(evaluations), usd or {})


def finding(rule, found):
    (one,) = BY_NAME[rule].check(found)
    return one


def nothing(rule, found):
    return list(BY_NAME[rule].check(found)) == []


def test_there_is_a_rule_for_each_problem_that_can_be_planted():
    assert sorted(BY_NAME) == sorted(PROBLEMS)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("seed", range(4))
def test_a_planted_problem_is_found_within_25_steps_and_not_before(problem, seed):
    run = sick_run(problem, seed)
    rule = [BY_NAME[problem]]
    (found,) = examine(run.curves(run.onset + 25), rule).findings
    assert found.until is None and found.usd > 0
    assert abs(found.onset - run.onset) <= 25
    assert examine(run.curves(run.onset - 1), rule).findings == ()


@pytest.mark.parametrize("seed", range(30))
def test_a_run_that_learns_until_its_end_has_no_finding(seed):
    examination = examine(healthy_run(seed).curves(), RULES)
    assert (examination.findings, examination.warnings) == ((), {})


@pytest.mark.parametrize("problem", PROBLEMS)
def test_what_a_finding_recommends_exists(problem):
    run = sick_run(problem, 1)
    change = finding(problem, run.curves(run.onset + 25)).change
    for command in re.findall("`art ([^`]+)`", change):
        words = command.split() if " " in command else [command, "a:b"]
        assert parser().parse_args(words).run
    known = {*attrs.fields_dict(TrainConfig), *attrs.fields_dict(PipelineConfig), "max_tokens"}
    assert set(re.findall(r"[a-z]+_[a-z_]+", change)) <= known


def test_a_level_counts_from_its_first_step_to_its_last():
    rates = [0.0] * 9 + [0.5] * 12 + [0.0] * 9
    found = finding("failing-rollouts", curves(30, reward__exception_rate=rates))
    assert (found.onset, found.until) == (10, 21)
    assert found.problem == "50% of the rollouts fail (limit 20%)"
    assert nothing("failing-rollouts", curves(30, reward__exception_rate=[0.5] * 9 + [0.0] * 21))


def test_a_limit_of_a_few_tokens_is_meant_to_cut():
    columns = {"data/step_num_truncated": (8,) * 20, "data/step_num_trajectories": (8,) * 20}
    steps = tuple(range(20))
    assert finding("truncation", RunCurves(steps, columns)).numbers["value"] == 1.0
    chosen = RunCurves(steps, columns | {"data/step_actor_tokens": (32,) * 20})
    assert nothing("truncation", chosen)
    long = RunCurves(steps, columns | {"data/step_actor_tokens": (800,) * 20})
    assert finding("truncation", long).onset == 0


def test_groups_without_spread_are_right_or_wrong_by_their_reward():
    columns = {f"{GROUPS}submitted": (8,) * 20, f"{GROUPS}trainable": (0,) * 20}
    high = RunCurves(tuple(range(20)), columns | {"reward/mean": (0.9,) * 20})
    low = RunCurves(tuple(range(20)), columns | {"reward/mean": (0.1,) * 20})
    assert finding("dead-groups-right", high).onset == 2
    assert nothing("dead-groups-wrong", high)
    assert finding("dead-groups-wrong", low).numbers["share"] == 1.0
    assert nothing("dead-groups-right", low)


def test_rewards_that_are_never_above_zero_have_their_own_range():
    columns = {"train/num_groups_submitted": (4,) * 30, "train/num_groups_trainable": (0,) * 30}
    reward = (-1.0,) * 10 + (0.0,) * 20
    found = RunCurves(tuple(range(30)), columns | {"reward/mean": reward})
    assert finding("dead-groups-right", found).onset == 12


def test_a_learning_rate_is_compared_with_the_highest_one():
    rates = [1e-5] * 10 + [1e-9] * 15
    assert finding("no-learning-rate", curves(25, loss__learning_rate=rates)).onset == 11
    assert nothing("no-learning-rate", curves(25, loss__learning_rate=[1e-6] * 25))


def test_entropy_may_fall_while_the_reward_rises():
    entropy = [0.8] * 20 + [0.1] * 20
    flat = curves(40, loss__entropy=entropy, reward__mean=[0.5, 0.4] * 20)
    assert finding("entropy-collapse", flat).problem == (
        "entropy fell from 0.8 to 0.1 nats in 15 steps; reward did not rise"
    )
    rising = curves(40, loss__entropy=entropy, reward__mean=[n / 80 for n in range(40)])
    assert nothing("entropy-collapse", rising)
    solved = curves(40, loss__entropy=entropy, reward__mean=[1.0] * 40)
    assert nothing("entropy-collapse", solved)
    assert nothing("entropy-collapse", curves(40, loss__entropy=entropy))


def evaluated(rewards, error=0.01):
    return [EvaluatedStep(5 * n, reward, error) for n, reward in enumerate(rewards, 1)]


def test_val_that_stays_while_the_reward_rises_is_found():
    rising = [0.2 + n / 100 for n in range(40)]
    flat = curves(40, evaluated([0.3] * 8), reward__mean=rising)
    (found,) = val_apart(flat)
    assert found.numbers["val_gain"] == 0.0
    follows = curves(40, evaluated([0.2 + n / 20 for n in range(8)]), reward__mean=rising)
    assert list(val_apart(follows)) == []
    assert list(val_apart(curves(40, evaluated([0.3] * 3), reward__mean=rising))) == []
    assert list(val_apart(curves(40, evaluated([0.3] * 8)))) == []


def test_evaluations_without_standard_errors_are_compared_by_their_spread():
    rising = [0.2 + n / 100 for n in range(40)]
    steady = curves(40, evaluated([0.3, 0.31] * 4, math.nan), reward__mean=rising)
    assert len(list(val_apart(steady))) == 1
    wild = curves(40, evaluated([0.9, 0.0] * 4, math.nan), reward__mean=rising)
    assert list(val_apart(wild)) == []


def test_a_mean_of_two_values_has_no_error():
    assert change_of([1.0, 2.0], [1.0, 2.0, 3.0]) is None
    change = change_of([0.0, 1.0, 2.0], [1.0, 2.0, 3.0])
    assert change.gain == 1.0
    assert change.error == pytest.approx(math.sqrt(2 / 3))


@given(st.lists(st.booleans()), st.integers(1, 5))
def test_the_last_stretch_is_true_and_long_enough(flags, least):
    found = last_stretch(flags, least)
    runs = "".join("x" if flag else " " for flag in flags).split()
    if found is None:
        assert all(len(run) < least for run in runs)
    else:
        first, last = found
        assert all(flags[first : last + 1]) and last - first + 1 >= least


@given(st.lists(st.floats(-1e9, 1e9) | st.just(math.nan), max_size=30), st.integers(1, 6))
def test_a_median_is_between_its_values(values, width):
    for place, found in enumerate(smoothed(values, width)):
        known = [v for v in values[max(0, place + 1 - width) : place + 1] if not math.isnan(v)]
        assert math.isnan(found) or min(known) <= found <= max(known)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_takes_a_torn_log_and_one_that_art_wrote(tmp_path, rule):
    lines = sick_run(rule.name, 1).lines()
    directory = tmp_path / "demo" / "models" / "a"
    directory.mkdir(parents=True)
    log = directory / "history.jsonl"
    log.write_bytes(lines[:-30])
    run = LoggedRun(directory)
    torn = RunCurves.of_rows(run.rows(), run.taxonomy)
    assert len(list(rule.check(torn))) == 1
    art = b'{"step": 1, "recorded_at": "2026-01-01T00:00:00", "train/reward": 0.5}\n'
    log.write_bytes(art * 3)
    assert list(rule.check(RunCurves.of_rows(run.rows(), run.taxonomy))) == []


def test_evaluations_of_steps_without_a_reward_are_not_apart():
    evaluated = [EvaluatedStep(step, 0.5, 0.01) for step in (1, 10, 20, 30)]
    assert nothing("val-apart", curves(30, evaluations=evaluated))
    close = [EvaluatedStep(step, 0.5, 0.01) for step in (1, 2, 3, 4)]
    assert nothing("val-apart", curves(30, evaluations=close))


def of_parts(style_std, correct, style=0.5):
    length = len(correct)
    return curves(
        length,
        reward__part_std_dev__correct=[0.1] * length,
        reward__part_std_dev__style=[style_std] * length,
        reward__correct=correct,
        reward__style=[style] * length,
    )


def test_a_part_that_has_all_the_variance_is_found_if_the_others_stand_still():
    found = finding("one-component", of_parts(1.0, [0.4, 0.5] * 15))
    assert (found.onset, found.until) == (1, None)
    assert found.numbers["share"] == pytest.approx(1.0 / 1.01)
    assert found.problem.startswith("the part 'style' has 99.0% of the reward's variance")
    assert found.metric == "reward/part_std_dev/style"


def test_a_part_beside_others_that_rise_are_learned_or_vary_too_is_none():
    rising = [0.02 * step for step in range(30)]
    assert nothing("one-component", of_parts(1.0, rising))
    assert nothing("one-component", of_parts(1.0, [0.95] * 30))
    assert nothing("one-component", of_parts(0.1, [0.4, 0.5] * 15))
    assert nothing("one-component", of_parts(1.0, [0.4, 0.5] * 5))
    assert nothing("one-component", of_parts(0.0, [0.4, 0.5] * 15, style=0.99))


def test_prices_count_by_their_dollars_and_their_age_on_that_day():
    def bought(share, days):
        usd = dict.fromkeys(range(1, 13), 1.0)
        purchases = [Purchase(step, "judge", share, days) for step in usd]
        return RunCurves(tuple(usd), {}, usd=usd, purchases=purchases)

    found = finding("outdated-prices", bought(0.5, 61))
    assert (found.onset, found.numbers) == (1, {"share": 0.5, "limit": 0.2, "days": 61.0})
    assert "that of judge was 61 days old" in found.problem
    assert nothing("outdated-prices", bought(0.1, 61))
    assert nothing("outdated-prices", bought(0.5, 60))


def test_purchases_are_those_of_receipts_that_have_a_date():
    row = healthy_run(1).rows[0]  # of 2026-01-01
    dates = ({"as_of": "2025-12"}, {"as_of": "lately"}, {}, {"as_of": 3})
    receipts = tuple({"leaf": "costs/x", "item": "j", "rates": rates} for rates in dates)
    assert list(purchases_of(attrs.evolve(row, receipts=receipts))) == [Purchase(1, "j", 0.0, 31)]
