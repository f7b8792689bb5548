"""The terms of a budget, and estimates of what comes next."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import art_core as art
from art_core.budgets.estimate import (
    ANSWER_TOKENS,
    Costs,
    bound_of_call,
    bound_of_next,
    gain_per_dollar,
)


def test_a_budget_is_a_value_with_its_terms(tmp_path):
    budget = art.budget(usd=25, per_step=0.5, warn=0.8)
    assert budget == art.Budget(usd=25, per_step=0.5)
    assert art.budget(usd=1, file=str(tmp_path / "b.jsonl")).file == tmp_path / "b.jsonl"


@pytest.mark.parametrize(
    ("terms", "found"),
    [
        ({"usd": -1}, "usd of a budget"),
        ({"usd": None}, "usd of a budget"),
        ({"usd": math.inf}, "usd of a budget"),
        ({"usd": "5"}, "usd of a budget"),
        ({"usd": 1, "warn": None}, "warn of a budget"),
        ({"usd": 1, "per_step": True}, "per_step of a budget"),
        ({"usd": 1, "unknown_price_usd": -1}, "unknown_price_usd of a budget"),
    ],
)
def test_a_term_that_is_no_amount_is_refused(terms, found):
    with pytest.raises(art.ConfigError, match=found):
        art.budget(**terms)


def test_a_budget_below_one_step_or_attempt_is_refused_before_anything_is_spent():
    with pytest.raises(art.ConfigError, match=r"\$1 is below per_step=\$2: nothing could begin"):
        art.budget(usd=1, per_step=2)
    with pytest.raises(art.ConfigError, match="below per_attempt"):
        art.budget(usd=1, per_attempt=2)


def test_the_next_cost_is_unknown_then_twice_the_first_then_at_most_twice_the_largest():
    assert bound_of_next([]) is None
    assert bound_of_next([0.0, 0.0]) == 0.0
    assert bound_of_next([0.5]) == 1.0
    assert bound_of_next([0.0, 0.5]) == 1.0  # a step that was free shows nothing of the next
    assert bound_of_next([1.0, 8.0]) == 16.0
    assert bound_of_next([2.0, 2.0]) == pytest.approx(2.0)


def test_many_equal_costs_bound_the_next_one_tightly():
    assert bound_of_next([2.0] * 20) == pytest.approx(2.0)


@given(st.lists(st.floats(1e-6, 1e3), min_size=8, max_size=64))
def test_the_bound_of_the_next_cost_is_a_positive_number(costs):
    bound = bound_of_next(costs)
    assert bound is not None
    assert 0 < bound < math.inf


def test_a_bound_is_kept_until_an_eighth_more_costs_are_there():
    costs = Costs()
    assert costs.bound() is None
    for _ in range(16):
        costs.add(1.0)
    assert costs.bound() == pytest.approx(1.0)
    costs.add(100.0)
    assert costs.bound() == pytest.approx(1.0)
    costs.add(100.0)
    costs.add(100.0)
    assert costs.bound() > 2.0


RATES = art.TokenRates(input_per_million=1e6, output_per_million=2e6)  # 1 and 2 dollars a token


def test_a_call_is_bounded_by_the_bytes_of_its_request_and_the_longest_answer():
    # 16 for the object, 7 bytes of "content", 2 of "é"
    request = {"content": "é", "max_tokens": 10}
    of_number = 10 + 16  # "max_tokens", and a number
    assert bound_of_call(Costs(), RATES, request) == 16 + 7 + 2 + of_number + 2 * 10
    assert bound_of_call(Costs(), RATES, {**request, "n": 3}) == 51 + 1 + 16 + 2 * 30


def test_an_image_is_not_counted_by_its_bytes_and_an_answer_has_a_usual_limit():
    request = {"": [{"url": "data:image/png;base64," + "A" * 10**6}]}
    assert bound_of_call(Costs(), RATES, request) == 16 + 16 + 3 + 4096 + 2 * ANSWER_TOKENS


def test_a_cache_write_that_is_dearer_than_the_prompt_bounds_it():
    rates = art.TokenRates(input_per_million=1e6, output_per_million=0, cache_write_per_million=2e6)
    assert bound_of_call(Costs(), rates, {}) == 2 * 16


def test_earlier_calls_bound_a_call_once_there_are_enough_or_if_nothing_else_is_known():
    costs = Costs()
    assert bound_of_call(costs, None, {}) is None
    costs.add(3.0)
    assert bound_of_call(costs, None, {}) == 6.0
    assert bound_of_call(costs, RATES, {}) == 16 + 2 * ANSWER_TOKENS
    for _ in range(7):
        costs.add(3.0)
    assert bound_of_call(costs, RATES, {}) == pytest.approx(3.0)


def test_the_gain_per_dollar_is_a_slope_with_its_error():
    assert gain_per_dollar([(float(i), 0.5) for i in range(9)]) is None
    assert gain_per_dollar([(1.0, 0.5)] * 10) is None
    assert gain_per_dollar([(float(i), 0.25 * i) for i in range(10)]) == pytest.approx(0.25)
    noisy = [(float(i), 0.25 * i + (-1) ** i) for i in range(10)]
    assert gain_per_dollar(noisy) > 0.25
