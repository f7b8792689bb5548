"""When a reward is reached: certain curves by hand, and noisy ones by simulation."""

import math
import random

import pytest

from art_core.forecast.reach import reach


def saturating(count, *, speed=40.0, ceiling=0.9, noise=0.0, seed=0):
    """Return a curve that rises from 0.2 towards a ceiling."""
    source = random.Random(seed)
    return {
        step: 0.2 + (ceiling - 0.2) * (1 - math.exp(-step / speed)) + noise * source.gauss(0, 1)
        for step in range(1, count + 1)
    }


def test_a_straight_curve_goes_on():
    found = reach("val/reward", {step: 0.01 * step for step in range(10, 60)}, 0.8)
    assert found.verdict == "expected"
    assert (found.low90, found.median, found.high90) == (80, 80, 80)
    assert found.newest == pytest.approx(0.57)
    assert (found.chance, found.limit) == (1.0, 500)


def test_a_reward_is_reached_when_five_values_have_it_in_the_mean():
    values = [0.1] * 10 + [0.9] * 10
    found = reach("val/reward", dict(enumerate(values, 1)), 0.74)
    # 0.1, 4 * 0.9: 0.74 at step 14
    assert (found.verdict, found.median) == ("reached", 14)


def test_a_ceiling_below_the_reward_is_seen_once_the_curve_is_flat():
    found = reach("val/reward", saturating(200, speed=20, ceiling=0.6, noise=0.01), 0.95)
    assert found.verdict == "not reached"
    assert found.chance <= 0.1
    assert found.median is None


def test_noise_without_a_rise_is_open():
    source = random.Random(7)
    found = reach("val/reward", {step: 0.3 + 0.05 * source.random() for step in range(40)}, 0.6)
    assert found.verdict == "open"
    assert "shows no rise" in found.reason


def test_a_rise_that_may_end_is_open_with_its_chance():
    found = reach("val/reward", saturating(40, speed=80, noise=0.1, seed=1), 0.7)
    assert found.verdict == "open"
    assert 0.1 < found.chance < 0.9
    assert "of the fitted curves reach 0.7 before step" in found.reason


def test_few_values_are_open():
    found = reach("val/reward", {1: 0.1, 2: math.nan, 3: 0.2}, 0.6)
    assert found.verdict == "open"
    assert found.reason == "val/reward has 2 values; its curve is continued from 8 on"


def test_a_curve_that_does_not_move_is_open():
    found = reach("val/reward", dict.fromkeys(range(20), 0.5), 0.6)
    assert found.verdict == "open"


def test_the_interval_covers_the_step_of_noisy_curves():
    # 0.2 + 0.7 * (1 - exp(-t / 60)) is 0.6 at step 50.8
    inside = 0
    for seed in range(30):
        found = reach("val/reward", saturating(30, speed=60, noise=0.05, seed=seed), 0.6)
        inside += (found.low90 or 301) <= 51 <= (found.high90 or math.inf) + 1
    assert inside / 30 >= 0.85
