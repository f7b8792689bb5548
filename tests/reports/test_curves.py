from __future__ import annotations

import pytest

from art_core.base.errors import ConfigError
from art_core.reports.curves import curve

CURVES = {
    "reward/mean": {2: 0.5, 1: 0.25, 4: 0.75},
    "loss/train": {1: 3.0, 4: 1.0},
    "costs/cum/all": {1: 10.0, 3: 30.0},
    "val/reward": {0: 0.1},
}


def points(key, x="step"):
    line = curve("run", CURVES, key, x)
    return list(zip(line.xs, line.ys, strict=True))


def test_a_curve_runs_over_steps_in_order():
    assert points("reward/mean") == [(1, 0.25), (2, 0.5), (4, 0.75)]


def test_over_another_metric_it_has_the_steps_that_both_have():
    assert points("reward/mean", "loss/train") == [(3.0, 0.25), (1.0, 0.75)]


def test_a_sum_over_the_run_holds_until_it_changes():
    assert points("reward/mean", "costs/cum/all") == [(10.0, 0.25), (10.0, 0.5), (30.0, 0.75)]
    assert points("val/reward", "costs/cum/all") == []


def test_steps_can_be_drawn_over_a_metric():
    assert points("step", "costs/cum/all") == [(10.0, 1), (30.0, 3)]


@pytest.mark.parametrize(("key", "x"), [("reward/men", "step"), ("reward/mean", "reward/men")])
def test_a_key_that_was_never_logged_gets_the_nearest(key, x):
    with pytest.raises(ConfigError, match=r"run has: .*Did you mean 'reward/mean'"):
        points(key, x)
