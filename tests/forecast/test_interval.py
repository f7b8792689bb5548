"""Intervals of what comes next: by hand, and how often simulated amounts lie in them."""

import math
import random
from itertools import product

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from art_core.forecast import interval
from art_core.forecast.interval import DRAWS, Interval, of_draws, of_next, of_sum, sum_draws

NAN = math.nan


def amounts(source: random.Random, count: int, growth: float, deviation: float) -> list[float]:
    """Return lognormal amounts around a level that grows along a straight line."""
    return [
        (1 + growth * place) * math.exp(deviation * source.gauss(0, 1)) for place in range(count)
    ]


def test_the_next_of_three_amounts_by_hand():
    # logarithms -1, 0, 1: mean 0, deviation 1, Student's t with 2 degrees: 0.8165 and 2.9200
    found = of_next([math.exp(-1), 1.0, math.e])
    scale = math.sqrt(1 + 1 / 3)
    assert found is not None
    assert found.median == pytest.approx(1.0)
    assert math.log(found.high50) == pytest.approx(0.81650 * scale, rel=1e-4)
    assert math.log(found.high90) == pytest.approx(2.91999 * scale, rel=1e-4)
    assert math.log(found.low90) == pytest.approx(-2.91999 * scale, rel=1e-4)
    # without a trend the mean is the mean of the amounts
    assert found.mean == pytest.approx((math.exp(-1) + 1 + math.e) / 3)


def test_amounts_that_double_each_time_go_on_to_double():
    found = of_next([2.0**place for place in range(10)])
    assert found is not None
    assert attrs.astuple(found) == pytest.approx((1024.0,) * 6)


def test_a_sum_of_equal_amounts_is_known():
    assert of_sum([0.25] * 10, 8) == of_sum([0.25] * 10, 8)
    assert attrs.astuple(of_sum([0.25] * 10, 8)) == pytest.approx((2.0,) * 6)
    assert attrs.astuple(of_sum([0.25] * 10, 400)) == pytest.approx((100.0,) * 6)
    assert of_sum([0.25] * 10, 0) == Interval(*(0.0,) * 6)


@pytest.mark.parametrize("count", [3, 5, 10, 60])
@pytest.mark.parametrize("growth", [0.0, 0.01])
def test_90_percent_of_next_amounts_lie_within_the_interval(count, growth):
    source = random.Random(f"{count} {growth}")
    inside = 0
    for _ in range(2000):
        values = amounts(source, count + 1, growth, 0.4)
        found = of_next(values[:-1])
        inside += found.low90 <= values[-1] <= found.high90
    assert 0.88 <= inside / 2000 <= 0.92


def test_90_percent_of_sums_lie_within_the_interval(monkeypatch):
    monkeypatch.setattr(interval, "DRAWS", 200)
    source = random.Random(2)
    cases = list(product([(4, 3), (10, 10), (30, 60), (100, 60)], [0.0, 0.01], [0.2, 0.6]))
    inside = half = 0
    for (count, steps), growth, deviation in cases * 25:
        values = amounts(source, count + steps, growth, deviation)
        found, whole = of_sum(values[:count], steps), sum(values[count:])
        inside += found.low90 <= whole <= found.high90
        half += found.low50 <= whole <= found.high50
    assert 0.86 <= inside / (25 * len(cases)) <= 0.94
    assert 0.44 <= half / (25 * len(cases)) <= 0.56


def test_gaps_are_left_out():
    known = [1.0, 1.2, 0.9]
    assert of_next([NAN, *known]) == of_next(known) == of_next([-1.0, math.inf, *known])
    assert of_next([1.0, NAN, 1.2, NAN, 0.9]) == of_next(known)


@pytest.mark.parametrize("values", [[], [1.0], [NAN, 1.0, NAN], [-1.0, -2.0, 3.0]])
def test_fewer_than_two_amounts_give_no_forecast(values):
    assert of_next(values) is None
    assert of_sum(values, 3) is None


def test_amounts_of_0_have_a_chance():
    # 1 of 2 are 0: the median is between, the low ends are 0
    found = of_next([0.0, 1.0] * 10)
    assert found is not None
    assert (found.low90, found.low50) == (0.0, 0.0)
    assert found.high90 == pytest.approx(1.0)
    assert found.mean == pytest.approx(0.5)
    total = of_sum([0.0, 1.0] * 10, 100)
    assert total is not None
    assert total.low90 < 45 < 55 < total.high90
    short = of_sum([0.0, 1.0] * 10, 1)
    assert short is not None
    assert (short.low90, short.high90) == (0.0, pytest.approx(1.0))


def test_nothing_but_0_stays_0_and_one_amount_has_its_chance():
    assert of_next([0.0, 0.0, 0.0]) == Interval(*(0.0,) * 6)
    assert of_sum([0.0, 0.0], 5) == of_sum([0.0, 0.0], 500) == Interval(*(0.0,) * 6)
    # (1 + 1/2) / (4 + 1) = 0.3
    assert of_next([0.0, 0.0, 0.0, 4.0]) == Interval(
        pytest.approx(1.2), 0.0, 0.0, pytest.approx(4.0), 0.0, pytest.approx(4.0)
    )
    found = of_sum([0.0, 0.0, 0.0, 4.0], 8)
    assert found is not None
    assert found.mean == pytest.approx(8 * 1.2)
    assert found.low90 == pytest.approx(0.0)
    assert 4.0 < found.high90 <= 32.0


def test_a_falling_level_never_goes_below_0():
    found = of_sum([0.8**place for place in range(20)], 1000)
    assert found is not None
    # what is left of the geometric series: 0.8**20 / (1 - 0.8)
    assert 0 < found.low90 <= found.high90
    assert found.median == pytest.approx(0.8**20 / 0.2, rel=0.5)


def test_a_rising_level_goes_on_along_a_straight_line():
    found = of_sum([1.01**place for place in range(20)], 100)
    assert found is not None
    straight = sum(1.01**19 * (1 + math.log(1.01) * ahead) for ahead in range(1, 101))
    assert found.median == pytest.approx(straight, rel=0.01)


def test_sums_of_independent_series_are_added_draw_by_draw():
    first, second = sum_draws([1.0] * 9, 20), sum_draws([2.0] * 9, 20, seed=1)
    assert len(first) == len(second) == DRAWS
    both = of_draws([a + b for a, b in zip(first, second, strict=True)])
    assert attrs.astuple(both.plus(1.0)) == pytest.approx((61.0,) * 6)
    other = sum_draws([1.0, 2.0, 1.5], 20, seed=1)
    assert other != sum_draws([1.0, 2.0, 1.5], 20)


@settings(max_examples=40)
@given(
    st.lists(st.one_of(st.floats(), st.floats(0, 1e300), st.just(0.0)), max_size=50),
    st.integers(0, 3000),
)
def test_any_numbers_give_ordered_intervals_or_none(values, steps):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interval, "DRAWS", 20)
        for found in (of_next(values), of_sum(values, steps)):
            if found is not None:
                low, high = found.low90, found.high90
                assert 0 <= low <= found.low50 <= found.median <= found.high50 <= high
                assert low <= found.mean <= high < math.inf
