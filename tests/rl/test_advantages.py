import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from art_core.base.numbers import has_spread, population_std
from art_core.rl.advantages import generalized_advantages, step_advantages


def of_one(group, **options):
    return step_advantages([group], **options)[0]


def test_an_advantage_is_the_reward_minus_the_groups_mean():
    assert of_one([0.0, 1.0, 2.0, 5.0]) == [-2.0, -1.0, 0.0, 3.0]


def test_scaled_advantages_are_divided_by_the_population_std():
    # mean 2, squared distances 4, 0, 4 and 0, std sqrt(8 / 4)
    assert population_std([0.0, 2.0, 4.0, 2.0]) == pytest.approx(math.sqrt(2))
    scaled = of_one([0.0, 2.0, 4.0, 2.0], scale_rewards=True)
    assert scaled == pytest.approx([-math.sqrt(2), 0.0, math.sqrt(2), 0.0])


@pytest.mark.parametrize("large", [1e200, 1e307])
def test_large_rewards_have_a_mean_and_a_std_like_others(large):
    rewards = [large, large, -large, -large, large, -large]
    assert population_std(rewards) == pytest.approx(large)
    assert of_one(rewards, scale_rewards=True) == pytest.approx([1, 1, -1, -1, 1, -1])


def test_rewards_whose_sum_no_float_holds_have_a_mean_and_infinite_ones_have_none():
    assert population_std([1e308] * 4) == 0.0
    assert math.isnan(population_std([math.inf, -math.inf]))


@pytest.mark.parametrize("rewards", [[], [3.0], [0.1, 0.1, 0.1], [1.0, 1.0 + 1e-13]])
@pytest.mark.parametrize("scale", [False, True])
def test_a_group_without_spread_has_no_advantages(rewards, scale):
    assert not has_spread(rewards)
    assert of_one(rewards, scale_rewards=scale) == [0.0] * len(rewards)


def test_rewards_that_differ_a_little_have_spread():
    assert has_spread([1.0, 1.0 + 1e-11])
    assert has_spread([-1.0, 1.0])


@pytest.mark.parametrize(
    ("balance", "expected"),
    [
        (0.0, [-1.0, 1.0]),
        (0.25, [-0.75, 1.0]),
        (1.0, [0.0, 1.0]),
        (-0.25, [-1.0, 0.75]),
        (-1.0, [-1.0, 0.0]),
    ],
)
def test_the_balance_weakens_one_sign_and_leaves_the_other(balance, expected):
    assert of_one([0.0, 2.0], advantage_balance=balance) == expected


rewards = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8)


@given(rewards)
def test_advantages_of_a_group_add_up_to_zero(group):
    assert math.fsum(of_one(group)) == pytest.approx(0.0, abs=1e-9)


def test_generalized_advantages_by_hand():
    """With gamma and lambda 0.5 the differences are -0.5, 0 and 2; a quarter of each goes back."""
    found = generalized_advantages([0.0, 0.0, 4.0], [1.0, 1.0, 2.0], gamma=0.5, lam=0.5)
    assert found == [-0.5 + 0.25 * 0.5, 0.0 + 0.25 * 2.0, 2.0]
    assert generalized_advantages([0.0, 1.0], [0.5, 0.25]) == pytest.approx(
        [-0.25 + 0.95 * 0.75, 0.75]
    )
    assert generalized_advantages([], []) == []


@given(
    st.lists(st.tuples(st.floats(-10, 10), st.floats(-10, 10)), max_size=12),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_generalized_advantages_are_the_sums_of_later_differences(pairs, gamma, lam):
    rewards, values = [r for r, _ in pairs], [v for _, v in pairs]
    after = [*values[1:], 0.0]
    deltas = [r + gamma * b - v for r, v, b in zip(rewards, values, after, strict=False)]
    wanted = [
        sum((gamma * lam) ** (n - t) * deltas[n] for n in range(t, len(deltas)))
        for t in range(len(deltas))
    ]
    found = generalized_advantages(rewards, values, gamma=gamma, lam=lam)
    assert found == pytest.approx(wanted, abs=1e-9)


@given(rewards.filter(has_spread), st.floats(-100, 100))
def test_a_constant_added_to_all_rewards_changes_nothing(group, shift):
    moved = of_one([r + shift for r in group])
    assert moved == pytest.approx(of_one(group), abs=1e-9)


@given(rewards.filter(lambda group: max(group) - min(group) > 1e-3))
def test_scaled_advantages_have_a_std_of_one(group):
    assert population_std(of_one(group, scale_rewards=True)) == pytest.approx(1.0)


def test_leave_one_out_compares_with_the_mean_of_the_others():
    # 0 against (2 + 4) / 2, 2 against (0 + 4) / 2, 4 against (0 + 2) / 2
    assert step_advantages([[0.0, 2.0, 4.0]], advantage_baseline="rloo") == [[-3.0, 0.0, 3.0]]
    assert step_advantages([[5.0], [1.0, 1.0]], advantage_baseline="rloo") == [[0.0], [0.0, 0.0]]


def test_rewards_are_scaled_by_the_std_of_the_whole_step():
    # all rewards: 0, 4, 2, 2; mean 2, squared distances 4, 4, 0, 0, std sqrt(2)
    scaled = step_advantages([[0.0, 4.0], [2.0, 2.0]], scale_rewards="batch")
    assert scaled[0] == pytest.approx([-math.sqrt(2), math.sqrt(2)])
    assert scaled[1] == [0.0, 0.0]
    assert step_advantages([[1.0, 1.0], [1.0]], scale_rewards="batch") == [[0.0, 0.0], [0.0]]
    assert step_advantages([], scale_rewards="batch") == []


@pytest.mark.parametrize(("asked", "means"), [("group", True), ("none", False)])
def test_scales_have_names_and_the_switch_of_the_reference(asked, means):
    groups = [[0.0, 2.0, 4.0, 2.0]]
    by_name = step_advantages(groups, scale_rewards=asked)
    assert by_name == step_advantages(groups, scale_rewards=means)


BASELINES = ("group_mean", "rloo")
SCALES = ("group", "batch", "none")
ROUNDED = [
    [0.1, 0.1, 0.1],
    [30000.1, 30000.1, 30000.1],
    [10000.1 + 0.2, 10000.3, 10000.3],
    [sum([1000.1] * 10), 10001.0],
    [-70000.7 * 3, -210002.1],
]
"""Rewards that are equal on paper; floats, their mean or their std differ by rounding."""


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("rewards", ROUNDED)
def test_rewards_that_differ_by_rounding_have_no_advantages(rewards, baseline, scale):
    found = step_advantages([rewards], scale_rewards=scale, advantage_baseline=baseline)
    assert found == [[0.0] * len(rewards)]


def exact(rewards, baseline, scale):
    """Advantages by fractions; the std's square root has 40 digits."""
    values = [Fraction(r) for r in rewards]
    mean = sum(values) / len(values)
    others = Fraction(len(values), len(values) - 1) if baseline == "rloo" else 1
    variance = sum((v - mean) ** 2 for v in values) / len(values)
    digits = 10**40
    std = Fraction(math.isqrt(int(variance * digits**2)), digits) if scale != "none" else 1
    return [float((v - mean) * others / std) for v in values]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("baseline", BASELINES)
@given(
    base=st.sampled_from([0.0, 1.0, -30000.1, 65536.0, 1e9]),
    parts=st.lists(st.integers(-1000, 1000), min_size=2, max_size=16).filter(has_spread),
    step=st.sampled_from([1.0, 1e-3, 1e-5]),
)
def test_advantages_are_those_of_exact_arithmetic(base, parts, step, baseline, scale):
    rewards = [base + part * step for part in parts]
    if has_spread(rewards):
        found = step_advantages([rewards], scale_rewards=scale, advantage_baseline=baseline)[0]
        wanted = exact(rewards, baseline, scale)
        largest = max(map(abs, wanted))
        assert found == pytest.approx(wanted, rel=1e-12, abs=1e-12 * largest)


def test_equal_rewards_have_a_std_of_exactly_zero():
    assert population_std([0.1, 0.1, 0.1]) == 0.0
    assert population_std([30000.1] * 7) == 0.0
