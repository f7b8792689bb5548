"""Statistics against hand-worked values, exact distributions and simulation."""

import math
import random

import pytest

import art_core as art
from art_core.evaluation.statistics import (
    MIN_PAIRS,
    clustered,
    difference,
    pass_at_k,
)
from art_core.forecast.interval import t_quantile


def test_a_clustered_mean_by_hand():
    # residual sums: (1 - .5) + (1 - .5) = 1, -1; 2 / 1 * (1 + 1) / 16
    found = clustered({"a": [1.0, 1.0], "b": [0.0, 0.0], "empty": []})
    assert (found.mean, found.count, found.clusters) == (0.5, 4, 2)
    assert found.std_err == pytest.approx(0.5)
    assert found.high - found.mean == pytest.approx(12.706 * 0.5, rel=1e-3)


def test_single_values_have_the_usual_standard_error():
    values = [0.0, 1.0, 1.0, 0.5]
    mean = sum(values) / 4
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / 3)
    found = clustered({str(i): [v] for i, v in enumerate(values)})
    assert found.std_err == pytest.approx(deviation / 2)


def test_one_scenario_tells_no_error():
    found = clustered({"a": [1.0, 0.0]})
    assert math.isnan(found.std_err)
    assert (found.low, found.high) == (-math.inf, math.inf)


def test_pass_at_k_is_the_share_of_subsets_that_hold_a_passed_attempt():
    import itertools

    for n, c, k in [(5, 2, 1), (5, 2, 3), (6, 1, 6), (4, 0, 2), (4, 4, 1)]:
        subsets = list(itertools.combinations([1] * c + [0] * (n - c), k))
        share = sum(any(s) for s in subsets) / len(subsets)
        assert pass_at_k(n, c, k) == pytest.approx(share)


@pytest.mark.parametrize(
    ("p", "degrees", "value"),
    # tables of Student's t
    [
        (0.975, 1, 12.7062),
        (0.975, 2, 4.30265),
        (0.975, 3, 3.18245),
        (0.975, 10, 2.22814),
        (0.95, 30, 1.69726),
        (0.995, 5, 4.03214),
        (0.5, 4, 0.0),
    ],
)
def test_quantiles_of_students_t(p, degrees, value):
    assert t_quantile(p, degrees) == pytest.approx(value, rel=3e-3, abs=1e-9)


def test_intervals_cover_the_mean():
    draw = random.Random(0)
    hits = 0
    for _ in range(1000):
        chances = [draw.betavariate(2, 2) for _ in range(40)]
        found = clustered(
            {str(i): [draw.random() < p for _ in range(4)] for i, p in enumerate(chances)}
        )
        hits += found.low <= 0.5 <= found.high
    assert 930 <= hits <= 970  # 950 expected, 6.9 its standard deviation


def test_looking_after_each_pair_errs_rarely_and_finds_a_true_difference_early():
    draw = random.Random(1)

    def pairs_until_decided(shift, planned=200):
        pairs = []
        while len(pairs) < planned:
            chance = draw.betavariate(2, 2)
            first = draw.random() < min(1.0, chance + shift)
            pairs.append(float(first) - float(draw.random() < chance))
            if side := difference(pairs, planned).decided:
                return side, len(pairs)
        return "", planned

    equal = [pairs_until_decided(0.0)[0] for _ in range(120)]
    assert sum(map(bool, equal)) <= 12  # 6 expected at most, 2.4 its standard deviation
    better = [pairs_until_decided(0.25) for _ in range(40)]
    assert {side for side, _ in better} == {"a"}
    assert sum(n for _, n in better) / 40 < 0.6 * 200


def test_a_difference_is_open_with_few_pairs():
    few = difference([1.0] * (MIN_PAIRS - 1), 100)
    assert (few.mean, few.low, few.high, few.decided) == (1.0, 1.0, 1.0, "")
    assert difference([1.0] * MIN_PAIRS, 100).decided == "a"
    assert difference([-1.0] * MIN_PAIRS, 100).decided == "b"
    assert difference([1.0, -1.0] * MIN_PAIRS, 100).decided == ""
    assert difference([1.0], 100).low == -math.inf


def test_bad_input_is_refused():
    for wrong in (
        lambda: clustered({}),
        lambda: clustered({"a": [1.0]}, level=1.0),
        lambda: difference([], 10),
        lambda: pass_at_k(4, 2, 5),
        lambda: pass_at_k(4, 5, 1),
    ):
        with pytest.raises(art.ConfigError):
            wrong()
